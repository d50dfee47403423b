// 03: train with progress, stop half-way, save, resume. Usage: 03_train MODEL TRAIN.jsonl OUT
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	dllm "dialoguellm.org/go"
)

const recipe = "[lora]\nrank = 4\n[train]\nepochs = 1\nbatch = 25\nlearning_rate = 2e-3\n"

// train makes steps until `enough` says so.
func train(trainer *dllm.Trainer, enough func(dllm.Event) bool) {
	for event, err := range trainer.Events(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("step %d of %d: loss %.4f\n", event.Step, event.Steps, event.Loss)
		if enough(event) {
			return
		}
	}
}

func main() {
	model, err := dllm.Open(context.Background(), nil, os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	data, err := dllm.OpenDataset(context.Background(), "jsonl:"+os.Args[2], "train")
	if err != nil {
		log.Fatal(err)
	}
	out := os.Args[3]
	first, err := model.NewTrainer(data, recipe, dllm.TrainOptions{})
	if err != nil {
		log.Fatal(err)
	}
	train(first, func(event dllm.Event) bool { return event.Step >= event.Steps/2 })
	if err := first.Save(out); err != nil { // a kill leaves the old checkpoint or the new one
		log.Fatal(err)
	}
	first.Close()

	second, err := model.NewTrainer(data, recipe, dllm.TrainOptions{Resume: out})
	if err != nil {
		log.Fatal(err)
	}
	train(second, func(dllm.Event) bool { return false })
	if _, err := second.Finish(out); err != nil {
		log.Fatal(err)
	}
}
