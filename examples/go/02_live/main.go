// 02: a live chat, a turn a line as `Name: text`; Ctrl-C ends it, also inside a call. Usage: 02_live MODEL
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"

	dllm "dialoguellm.org/go"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	model, err := dllm.Open(ctx, nil, os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	classifier, err := model.NewClassifier()
	if err != nil {
		log.Fatal(err)
	}
	talk, err := classifier.NewConversation()
	if err != nil {
		log.Fatal(err)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		speaker, text, found := strings.Cut(lines.Text(), ": ")
		if !found {
			continue
		}
		emotions, err := talk.Say(ctx, speaker, text) // costs this turn's tokens alone
		if err != nil {
			log.Fatal(err)
		}
		label, p := emotions.Best()
		fmt.Printf("%s %.4f\n", label, p)
	}
	fmt.Printf("%d turns\n", talk.Turns())
}
