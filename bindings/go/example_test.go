package dialoguellm_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	dllm "dialoguellm.org/go"
)

// What examples write is gone when they have ended.
func TestMain(m *testing.M) {
	dir := must(os.MkdirTemp("", "dialoguellm"))
	os.Setenv("TMPDIR", dir)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// classifier is one of the tiny model's, whose answers mean nothing: it was never trained.
func classifier() *dllm.Classifier { return must(model().NewClassifier()) }

// trained is a folder with an adapter that made two steps.
func trained() string {
	dir := filepath.Join(must(os.MkdirTemp("", "")), "adapter")
	trainer := must(model().NewTrainer(must(dllm.ParseDataset(ctx, data)), recipe+"max_steps = 2\n", dllm.TrainOptions{}))
	for _, err := range trainer.Events(ctx) {
		if err != nil {
			panic(err)
		}
	}
	must(trainer.Finish(dir))
	return dir
}

func ExampleVersion() {
	fmt.Println(strings.Count(dllm.Version(), "."))
	// Output: 2
}

func ExampleNewRuntime() {
	on := must(dllm.NewRuntime(2, dllm.CPU))
	defer on.Close()
	m := must(dllm.Open(ctx, on, tiny()))
	defer m.Close()
	fmt.Println(m.VocabSize())
	// Output: 1024
}

func ExampleOpen() {
	_, err := dllm.Open(ctx, nil, "no/such/folder")
	fmt.Println(errors.Is(err, dllm.ErrNotFound))
	// Output: true
}

func ExampleOpenWith() {
	m := must(dllm.OpenWith(ctx, nil, tiny(), dllm.ModelOptions{Precision: dllm.Int8}))
	defer m.Close()
	fmt.Println(strings.Contains(must(m.Info()), `"int8"`))
	// Output: true
}

func ExampleEstimate() {
	whole, small := must(dllm.Estimate(tiny(), dllm.BF16)), must(dllm.Estimate(tiny(), dllm.Int8))
	fmt.Println(small.Weights < whole.Weights, small.CachePerToken == whole.CachePerToken)
	// Output: true true
}

func ExampleModel_Info() {
	var info struct {
		Precision string `json:"precision"`
	}
	if err := json.Unmarshal([]byte(must(model().Info())), &info); err != nil {
		panic(err)
	}
	fmt.Println(info.Precision)
	// Output: bf16
}

func ExampleModel_VocabSize() {
	fmt.Println(model().VocabSize())
	// Output: 1024
}

func ExampleModel_Tokenize() {
	m := model()
	ids := must(m.Tokenize("We won!", false))
	fmt.Println(must(m.Detokenize(ids, true)))
	// Output: We won!
}

func ExampleModel_Detokenize() {
	fmt.Printf("%q\n", must(model().Detokenize(nil, true)))
	// Output: ""
}

func ExampleModel_Logits() {
	m := model()
	fmt.Println(len(must(m.Logits(ctx, nil, must(m.Tokenize("We won!", true))))) == m.VocabSize())
	// Output: true
}

func ExampleModel_Score() {
	scores := must(model().Score(ctx, nil, "Did you win?", " Yes", " No"))
	fmt.Println(len(scores), scores[0] < 0)
	// Output: 2 true
}

func ExampleModel_Generate() {
	heard := ""
	whole := must(model().Generate(ctx, "Ann: We", dllm.GenerateOptions{MaxTokens: 5}, func(piece string) bool {
		heard += piece
		return true
	}))
	fmt.Println(whole == heard)
	// Output: true
}

func ExampleModel_OpenAdapter() {
	m := model()
	adapter := must(m.OpenAdapter(trained()))
	defer adapter.Close()
	how := dllm.GenerateOptions{MaxTokens: 5, Adapter: adapter}
	fmt.Println(must(m.Generate(ctx, "Ann: We", how, nil)) != "")
	// Output: true
}

func ExampleAdapter_Parameters() {
	fmt.Println(must(model().OpenAdapter(trained())).Parameters() > 1000)
	// Output: true
}

func ExampleAdapter_Save() {
	adapter, copied := must(model().OpenAdapter(trained())), filepath.Join(must(os.MkdirTemp("", "")), "copy")
	fmt.Println(adapter.Save(copied))
	// Output: <nil>
}

func ExampleModel_NewClassifier() {
	fmt.Println(must(model().NewClassifier("good", "bad")).Labels())
	// Output: [good bad]
}

func ExampleModel_NewClassifierWith() {
	m := model()
	how := dllm.ClassifierOptions{Labels: []string{"joy", "anger"}, Window: 2, Adapter: must(m.OpenAdapter(trained()))}
	fmt.Println(must(m.NewClassifierWith(how)).Labels())
	// Output: [joy anger]
}

func ExampleModel_OpenClassifier() {
	fmt.Println(must(model().OpenClassifier(trained())).Labels())
	// Output: [anger joy surprise]
}

func ExampleClassifier_Labels() {
	fmt.Println(classifier().Labels())
	// Output: [neutral joy surprise anger sadness disgust fear]
}

func ExampleClassifier_Predict() {
	rows := must(classifier().Predict(ctx, dllm.Turn{Speaker: "Ann", Text: "We won!"}, dllm.Turn{Speaker: "Bo", Text: "Oh no."}))
	for i, emotions := range rows {
		_, p := emotions.Best()
		fmt.Println(i, p > 1.0/7)
	}
	// Output:
	// 0 true
	// 1 true
}

func ExampleClassifier_PredictAll() {
	fmt.Println(len(must(classifier().PredictAll(ctx, must(dllm.ParseDataset(ctx, data))))))
	// Output: 3
}

func ExampleClassifier_Why() {
	won, seen := dllm.Turn{Speaker: "Ann", Text: "We won!"}, dllm.Turn{Speaker: "Bo", Text: "I see."}
	why := must(classifier().Why(ctx, dllm.WhyTurns, "joy", won, seen))
	fmt.Println(strings.Contains(why, `"label":"joy"`), strings.Contains(why, `"text":"We won!"`))
	// Output: true true
}

func ExampleClassifier_Evaluate() {
	report := must(classifier().Evaluate(ctx, must(dllm.ParseDataset(ctx, data))))
	fmt.Println(strings.Contains(report, `"weighted_f1"`))
	// Output: true
}

func ExampleClassifier_Calibrated() {
	plain := classifier()
	fmt.Println(must(plain.Calibrated(ctx, must(dllm.ParseDataset(ctx, data)))).Temperature() != plain.Temperature())
	// Output: true
}

func ExampleClassifier_Temperature() {
	fmt.Println(classifier().Temperature())
	// Output: 1
}

func ExampleClassifier_Save() {
	m, copied := model(), filepath.Join(must(os.MkdirTemp("", "")), "copy")
	fmt.Println(must(m.OpenClassifier(trained())).Save(copied), must(m.OpenClassifier(copied)).Labels())
	// Output: <nil> [anger joy surprise]
}

func ExampleEmotions_Best() {
	emotions := dllm.Emotions{Labels: []string{"joy", "fear"}, Probabilities: []float32{0.25, 0.75}}
	fmt.Println(emotions.Best())
	// Output: fear 0.75
}

func ExampleClassifier_NewConversation() {
	talk := must(classifier().NewConversation())
	defer talk.Close()
	emotions := must(talk.Say(ctx, "Ann", "We won! What a lovely day!"))
	fmt.Println(len(emotions.Probabilities), talk.Turns())
	// Output: 7 1
}

func ExampleClassifier_NewConversationWithin() {
	talk := must(classifier().NewConversationWithin(64))
	for range 20 {
		must(talk.Say(ctx, "Ann", "We won! What a lovely day!"))
	}
	fmt.Println(talk.Tokens() <= 64)
	// Output: true
}

func ExampleClassifier_Restore() {
	c := classifier()
	talk := must(c.NewConversation())
	said := must(talk.Say(ctx, "Ann", "We won!"))
	again := must(c.Restore(must(talk.Save())))
	fmt.Println(must(again.Ask(ctx)).Probabilities[0] == said.Probabilities[0])
	// Output: true
}

func ExampleConversation_Add() {
	talk := must(classifier().NewConversation())
	fmt.Println(talk.Add(ctx, dllm.Turn{Speaker: "Ann", Text: "We won!", Visual: "She is laughing."}), talk.Turns())
	// Output: <nil> 1
}

func ExampleConversation_AddClip() {
	talk := must(classifier().NewConversation())
	see := func(clip string) (string, error) { return "She is laughing.", nil } // ask a vision model about the clip
	fmt.Println(talk.AddClip(ctx, dllm.Turn{Speaker: "Ann", Text: "We won!"}, "clip.mp4", see), talk.Turns())
	// Output: <nil> 1
}

func ExampleConversation_Ask() {
	talk := must(classifier().NewConversation())
	_, err := talk.Ask(ctx)
	fmt.Println(errors.Is(err, dllm.ErrInvalidArgument)) // nobody said anything
	// Output: true
}

func ExampleConversation_Say() {
	talk := must(classifier().NewConversation())
	label, _ := must(talk.Say(ctx, "Ann", "We won!")).Best()
	fmt.Println(label != "")
	// Output: true
}

func ExampleConversation_Rollback() {
	talk := must(classifier().NewConversation())
	must(talk.Say(ctx, "Ann", "We won!"))
	fmt.Println(talk.Rollback(1), talk.Turns())
	// Output: <nil> 0
}

func ExampleConversation_Save() {
	fmt.Println(json.Valid([]byte(must(must(classifier().NewConversation()).Save()))))
	// Output: true
}

func ExampleConversation_Turns() {
	fmt.Println(must(classifier().NewConversation()).Turns())
	// Output: 0
}

func ExampleConversation_Tokens() {
	talk := must(classifier().NewConversation())
	must(talk.Say(ctx, "Ann", "We won!"))
	fmt.Println(talk.Tokens() > 4)
	// Output: true
}

func ExampleOpenDataset() {
	file := filepath.Join(must(os.MkdirTemp("", "")), "dialogues.jsonl")
	if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
		panic(err)
	}
	fmt.Println(must(dllm.OpenDataset(ctx, "jsonl:"+file, "train")).Dialogues())
	// Output: 2
}

func ExampleParseDataset() {
	d := must(dllm.ParseDataset(ctx, data))
	defer d.Close()
	fmt.Println(d.Dialogues(), d.Turns(), d.TurnsOf(1))
	// Output: 2 3 1
}

func ExampleDataset_Dialogues() {
	fmt.Println(must(dllm.ParseDataset(ctx, data)).Dialogues())
	// Output: 2
}

func ExampleDataset_Turns() {
	fmt.Println(must(dllm.ParseDataset(ctx, data)).Turns())
	// Output: 3
}

func ExampleDataset_TurnsOf() {
	fmt.Println(must(dllm.ParseDataset(ctx, data)).TurnsOf(0))
	// Output: 2
}

func ExampleDataset_Stats() {
	fmt.Println(must(must(dllm.ParseDataset(ctx, data)).Stats()))
	// Output: {"dialogues":2,"turns":3,"labels":{"anger":1,"joy":1,"surprise":1}}
}

func ExampleDataset_JSONLines() {
	fmt.Print(must(must(dllm.ParseDataset(ctx, `{"turns":[{"text":"We won!"}]}`)).JSONLines()))
	// Output: {"id":"d0","turns":[{"speaker":"","text":"We won!"}]}
}

func ExampleDataset_Baseline() {
	d := must(dllm.ParseDataset(ctx, data))
	fmt.Println(strings.Contains(must(d.Baseline(d)), `"accuracy":1.0`)) // it has learned these very turns
	// Output: true
}

func ExamplePairedBootstrap() {
	gold, before, after := []uint32{0, 1, 1}, []uint32{0, 0, 0}, []uint32{0, 1, 1}
	said := must(dllm.PairedBootstrap(2, gold, before, after, []int{2, 1}, 100, 0))
	fmt.Println(strings.Contains(said, `"not_better":0.0`))
	// Output: true
}

func ExampleModel_NewTrainer() {
	d := must(dllm.ParseDataset(ctx, data))
	trainer := must(model().NewTrainer(d, recipe, dllm.TrainOptions{Dev: d}))
	defer trainer.Close()
	for event, err := range trainer.Events(ctx) {
		if err != nil {
			panic(err)
		}
		if event.Dev {
			fmt.Println("dev score after epoch", event.Epoch)
		}
	}
	// Output:
	// dev score after epoch 1
	// dev score after epoch 2
}

func ExampleTrainer_Step() {
	event := must(must(model().NewTrainer(must(dllm.ParseDataset(ctx, data)), recipe, dllm.TrainOptions{})).Step(ctx))
	fmt.Println(event.Step, "of", event.Steps, event.Loss > 0)
	// Output: 1 of 4 true
}

func ExampleTrainer_Events() {
	steps := 0
	for event, err := range must(model().NewTrainer(must(dllm.ParseDataset(ctx, data)), recipe, dllm.TrainOptions{})).Events(ctx) {
		if err != nil || event.Step == 3 {
			break
		}
		steps++
	}
	fmt.Println(steps)
	// Output: 2
}

func ExampleTrainer_Adapter() {
	trainer := must(model().NewTrainer(must(dllm.ParseDataset(ctx, data)), recipe, dllm.TrainOptions{}))
	must(trainer.Step(ctx))
	fmt.Println(must(trainer.Adapter()).Parameters() > 1000)
	// Output: true
}

func ExampleTrainer_Save() {
	d, dir := must(dllm.ParseDataset(ctx, data)), filepath.Join(must(os.MkdirTemp("", "")), "run")
	trainer := must(model().NewTrainer(d, recipe, dllm.TrainOptions{}))
	must(trainer.Step(ctx))
	fmt.Println(trainer.Save(dir))
	again := must(model().NewTrainer(d, recipe, dllm.TrainOptions{Resume: dir}))
	fmt.Println(must(again.Step(ctx)).Step)
	// Output:
	// <nil>
	// 2
}

func ExampleTrainer_Finish() {
	trainer := must(model().NewTrainer(must(dllm.ParseDataset(ctx, data)), recipe, dllm.TrainOptions{}))
	must(trainer.Step(ctx))
	summary := must(trainer.Finish(filepath.Join(must(os.MkdirTemp("", "")), "adapter")))
	fmt.Println(strings.Contains(summary, `"steps":1`))
	// Output: true
}

func ExampleMerge() {
	out := filepath.Join(must(os.MkdirTemp("", "")), "merged")
	fmt.Println(dllm.Merge(ctx, tiny(), trained(), out, nil))
	// Output: <nil>
}

func ExampleQuantize() {
	out, last := filepath.Join(must(os.MkdirTemp("", "")), "small"), 0
	err := dllm.Quantize(ctx, tiny(), out, 8, func(done, all int) bool { last = done; return true })
	fmt.Println(err, last)
	// Output: <nil> 28
}

func ExampleImportGGUF() {
	err := dllm.ImportGGUF(ctx, "no/such/file.gguf", "out", nil)
	fmt.Println(errors.Is(err, dllm.ErrNotFound))
	// Output: true
}

// Close, Error and Is need none: their meaning is the language's.
func TestEveryExportedFunctionHasAnExample(t *testing.T) {
	set, examples := token.NewFileSet(), map[string]bool{}
	wanted := []string{}
	for _, path := range must(filepath.Glob("*.go")) {
		for _, declared := range must(parser.ParseFile(set, path, nil, 0)).Decls {
			function, ok := declared.(*ast.FuncDecl)
			if !ok {
				continue
			}
			name := function.Name.Name
			if strings.HasSuffix(path, "_test.go") {
				examples[name] = true
			} else if function.Name.IsExported() && name != "Close" && name != "Error" && name != "Is" {
				wanted = append(wanted, "Example"+receiver(function)+name)
			}
		}
	}
	if len(wanted) < 40 {
		t.Errorf("only %d functions were found", len(wanted))
	}
	for _, name := range wanted {
		if !examples[name] {
			t.Error(name, "is missing")
		}
	}
}

// receiver is "Model_" for a method of Model or *Model.
func receiver(function *ast.FuncDecl) string {
	if function.Recv == nil {
		return ""
	}
	switch of := function.Recv.List[0].Type.(type) {
	case *ast.StarExpr:
		return of.X.(*ast.Ident).Name + "_"
	default:
		return of.(*ast.Ident).Name + "_"
	}
}
