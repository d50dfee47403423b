// 01: label a conversation. Usage: 01_label MODEL
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	dllm "dialoguellm.org/go"
)

func main() {
	ctx := context.Background()
	model, err := dllm.Open(ctx, nil, os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	classifier, err := model.NewClassifier() // MELD's seven labels
	if err != nil {
		log.Fatal(err)
	}
	turns := []dllm.Turn{
		{Speaker: "Ann", Text: "We won! What a lovely day!"},
		{Speaker: "Bo", Text: "You won? I had no idea."},
		{Speaker: "Ann", Text: "You forgot. Again."},
	}
	rows, err := classifier.Predict(ctx, turns...)
	if err != nil {
		log.Fatal(err)
	}
	for i, row := range rows {
		label, p := row.Best()
		fmt.Printf("%s: %s %.4f\n", turns[i].Speaker, label, p)
	}
}
