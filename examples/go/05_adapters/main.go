// 05: several adapters on one model, whose weights are there once. Usage: 05_adapters MODEL ADAPTER..
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
	for i, adapter := range os.Args[2:] {
		classifier, err := model.OpenClassifier(adapter)
		if err != nil {
			log.Fatal(err)
		}
		rows, err := classifier.Predict(ctx, dllm.Turn{Speaker: "Ann", Text: "They're turning it down! We keep it!"})
		if err != nil {
			log.Fatal(err)
		}
		label, p := rows[0].Best()
		fmt.Printf("adapter %d: %s %.4f\n", i+1, label, p)
	}
}
