// 04: label every turn of a file of dialogues. Usage: 04_batch MODEL ADAPTER DIALOGUES.jsonl
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
	classifier, err := model.OpenClassifier(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	data, err := dllm.OpenDataset(ctx, "jsonl:"+os.Args[3], "test")
	if err != nil {
		log.Fatal(err)
	}
	rows, err := classifier.PredictAll(ctx, data)
	if err != nil {
		log.Fatal(err)
	}
	for dialogue := range data.Dialogues() {
		fmt.Printf("%d:", dialogue)
		for _, row := range rows[:data.TurnsOf(dialogue)] {
			label, _ := row.Best()
			fmt.Printf(" %s", label)
		}
		fmt.Println()
		rows = rows[data.TurnsOf(dialogue):]
	}
}
