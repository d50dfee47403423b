package dialoguellm_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	dllm "dialoguellm.org/go"
)

const data = `{"turns":[{"speaker":"Ann","text":"We won!","emotion":"joy"},{"speaker":"Bo","text":"Leave me alone.","emotion":"anger"}]}
{"turns":[{"speaker":"Cy","text":"Oh! What was that?","emotion":"surprise"}]}
`
const recipe = "[lora]\nrank = 2\n[train]\nepochs = 2\nbatch = 1\n"

var ctx = context.Background()

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func tiny() string {
	if dir := os.Getenv("DLLM_TINY"); dir != "" {
		return dir
	}
	return "../../examples/tiny/model"
}

func model() *dllm.Model {
	on := must(dllm.NewRuntime(2, dllm.CPU))
	defer on.Close() // the model keeps what it needs of it
	return must(dllm.Open(ctx, on, tiny()))
}

func TestATurnIsTheSameAloneAndInAConversation(t *testing.T) {
	m := model()
	defer m.Close()
	c := must(m.NewClassifier())
	defer c.Close()
	alone := must(c.Predict(ctx, dllm.Turn{Speaker: "Ann", Text: "We won!"}, dllm.Turn{Speaker: "Bo", Text: "Leave me alone."}))
	talk := must(c.NewConversation())
	defer talk.Close()
	for i, turn := range [][2]string{{"Ann", "We won!"}, {"Bo", "Leave me alone."}} {
		if live := must(talk.Say(ctx, turn[0], turn[1])); !reflect.DeepEqual(live, alone[i]) {
			t.Errorf("turn %d: %v live, %v alone", i, live, alone[i])
		}
	}
	again := must(c.Restore(must(talk.Save())))
	if err := talk.Rollback(1); err != nil || talk.Turns() != 1 {
		t.Error(err, talk.Turns())
	}
	if !reflect.DeepEqual(must(talk.Ask(ctx)), alone[0]) || !reflect.DeepEqual(must(again.Ask(ctx)), alone[1]) {
		t.Error("a conversation that went back or was restored says something else")
	}
}

func TestWhatIsSeenIsAskedOnceAndAnErrorGoesThrough(t *testing.T) {
	m := model()
	defer m.Close()
	c := must(m.NewClassifier())
	defer c.Close()
	talk, told := must(c.NewConversation()), must(c.NewConversation())
	defer talk.Close()
	defer told.Close()
	asked := ""
	see := func(clip string) (string, error) { asked += clip; return "Ann " + "jumps.", nil }
	if err := talk.AddClip(ctx, dllm.Turn{Speaker: "Ann", Text: "We won!"}, "clip.mp4", see); err != nil || asked != "clip.mp4" {
		t.Error(err, asked)
	}
	if err := told.Add(ctx, dllm.Turn{Speaker: "Ann", Text: "We won!", Visual: "Ann jumps."}); err != nil {
		t.Error(err)
	}
	if !reflect.DeepEqual(must(talk.Ask(ctx)), must(told.Ask(ctx))) {
		t.Error("a turn that was described says something else than one that has the description")
	}
	broken := errors.New("a broken film")
	err := talk.AddClip(ctx, dllm.Turn{Text: "Why?"}, "", func(string) (string, error) { return "", broken })
	if err != broken || talk.Turns() != 1 {
		t.Error(err, talk.Turns())
	}
}

func TestDataAreCountedJudgedAndCompared(t *testing.T) {
	d := must(dllm.ParseDataset(ctx, data))
	defer d.Close()
	if stats := must(d.Stats()); !strings.Contains(stats, `"turns":3`) {
		t.Error(stats)
	}
	lines := must(d.JSONLines())
	if again := must(dllm.ParseDataset(ctx, lines, "joy", "anger", "surprise")); must(again.JSONLines()) != lines {
		t.Error(lines)
	}
	if _, err := dllm.ParseDataset(ctx, lines, "joy"); !errors.Is(err, dllm.ErrBadFile) {
		t.Error(err)
	}
	if report := must(d.Baseline(d)); !strings.Contains(report, `"accuracy":1.0`) {
		t.Error(report)
	}
	said := must(dllm.PairedBootstrap(2, []uint32{0, 1, 1}, []uint32{0, 0, 0}, []uint32{0, 1, 1}, []int{2, 1}, 100, 0))
	if !strings.Contains(said, `"not_better":0.0`) {
		t.Error(said)
	}
}

// DLLM_BITS names the probability bits that every language gets with DLLM_ISA=portable.
func TestProbabilitiesHaveTheBitsOfAllLanguages(t *testing.T) {
	file := os.Getenv("DLLM_BITS")
	if file == "" {
		t.Skip("no DLLM_BITS")
	}
	m := model()
	defer m.Close()
	c := must(m.NewClassifier())
	defer c.Close()
	alone := must(c.Predict(ctx, dllm.Turn{Speaker: "Ann", Text: "We won!"}, dllm.Turn{Speaker: "Bo", Text: "Leave me alone."}))
	var bits []string
	for _, p := range alone[1].Probabilities {
		bits = append(bits, fmt.Sprintf("%08x", math.Float32bits(p)))
	}
	if want := strings.TrimSpace(string(must(os.ReadFile(file)))); strings.Join(bits, " ") != want {
		t.Errorf("%v, not %s", bits, want)
	}
}

func TestAFailureHasItsStatusAndSentence(t *testing.T) {
	_, err := dllm.Open(ctx, nil, "no/such/folder")
	if !errors.Is(err, dllm.ErrNotFound) || errors.Is(err, dllm.ErrBusy) || !strings.Contains(err.Error(), "no/such/folder") {
		t.Error(err)
	}
}

func TestTextIsHeardPieceByPiece(t *testing.T) {
	m := model()
	var heard strings.Builder
	whole := must(m.Generate(ctx, "Ann: We", dllm.GenerateOptions{MaxTokens: 8}, func(piece string) bool {
		heard.WriteString(piece)
		return true
	}))
	if whole == "" || whole != heard.String() {
		t.Errorf("%q and %q", whole, heard.String())
	}
	first := must(m.Generate(ctx, "Ann: We", dllm.GenerateOptions{}, func(string) bool { return false }))
	if !strings.HasPrefix(whole, first) || len(first) == len(whole) {
		t.Errorf("%q is not the beginning of %q", first, whole)
	}
}

func TestAChatHasASystemMessage(t *testing.T) {
	m := model()
	pieces := 0
	best := must(m.Generate(ctx, "Ann: We", dllm.GenerateOptions{MaxTokens: 8, Beams: 3}, func(string) bool { pieces++; return true }))
	if pieces != 1 || best == "" {
		t.Errorf("beams gave %q in %d pieces", best, pieces)
	}
	how := dllm.GenerateOptions{MaxTokens: 8, Chat: true, System: "Be kind."}
	plain := "System: Be kind.\nUser: We won!\nAssistant:" // as the tiny model's template has it
	if chat := must(m.Generate(ctx, "We won!", how, nil)); chat != must(m.Generate(ctx, plain, dllm.GenerateOptions{MaxTokens: 8}, nil)) {
		t.Error(chat)
	}
	if _, err := m.Generate(ctx, "We won!", dllm.GenerateOptions{System: "Be kind."}, nil); !errors.Is(err, dllm.ErrInvalidArgument) {
		t.Error(err)
	}
}

func TestTokensHaveLogitsAndContinuationsScores(t *testing.T) {
	m := model()
	ids := must(m.Tokenize("We won!", false))
	if text := must(m.Detokenize(ids, true)); text != "We won!" || len(must(m.Tokenize("", false))) != 0 {
		t.Error(ids, text)
	}
	logits, sum := must(m.Logits(ctx, nil, ids)), 0.0
	for _, x := range logits {
		sum += math.Exp(float64(x))
	}
	next := must(m.Tokenize("We won! Yes", false))[len(ids):]
	scores := must(m.Score(ctx, nil, "We won!", " Yes", " No"))
	if want := float64(logits[next[0]]) - math.Log(sum); len(next) == 1 && math.Abs(scores[0]-want) > 1e-3 || len(logits) != m.VocabSize() {
		t.Error(scores, want)
	}
}

func TestAnAdapterIsTakenSavedAndOpened(t *testing.T) {
	m, dir := model(), filepath.Join(t.TempDir(), "adapter")
	set := must(dllm.ParseDataset(ctx, data))
	trainer := must(m.NewTrainer(set, recipe, dllm.TrainOptions{}))
	must(trainer.Step(ctx))
	adapter := must(trainer.Adapter())
	defer adapter.Close()
	if err := adapter.Save(dir); err != nil || adapter.Parameters() < 1000 {
		t.Fatal(err, adapter.Parameters())
	}
	labels := []string{"joy", "anger", "surprise"}
	with := func(adapter *dllm.Adapter) *dllm.Classifier {
		return must(m.NewClassifierWith(dllm.ClassifierOptions{Labels: labels, Words: []string{"glad", "angry", "oh"}, Window: 2, Adapter: adapter}))
	}
	own := with(adapter)
	if got, want := must(with(must(m.OpenAdapter(dir))).PredictAll(ctx, set)), must(own.PredictAll(ctx, set)); !reflect.DeepEqual(got, want) {
		t.Error(got, want)
	}
	calibrated := must(own.Calibrated(ctx, set))
	if err := calibrated.Save(dir); err != nil || own.Temperature() != 1 || calibrated.Temperature() == 1 {
		t.Fatal(err, own.Temperature(), calibrated.Temperature())
	}
	if again := must(m.OpenClassifier(dir)); again.Temperature() != calibrated.Temperature() || !reflect.DeepEqual(again.Labels(), labels) {
		t.Error(again.Temperature(), again.Labels())
	}
	talk := must(calibrated.NewConversationWithin(64))
	must(talk.Say(ctx, "Ann", "We won!"))
	if talk.Tokens() == 0 {
		t.Error("a conversation without tokens")
	}
}

func TestTrainingIsALoopAndResumes(t *testing.T) {
	m, work := model(), t.TempDir()
	set := must(dllm.ParseDataset(ctx, data))
	if set.Dialogues() != 2 || set.Turns() != 3 || set.TurnsOf(0) != 2 {
		t.Error(set.Dialogues(), set.Turns())
	}
	run := func(out string, how dllm.TrainOptions) (steps, devs int) {
		how.Dev = set
		trainer := must(m.NewTrainer(set, recipe, how))
		defer trainer.Close()
		for event, err := range trainer.Events(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if event.Dev {
				devs++
			} else {
				steps++
			}
		}
		must(trainer.Finish(out))
		return
	}
	whole, resumed, stopped := filepath.Join(work, "whole"), filepath.Join(work, "resumed"), filepath.Join(work, "stopped")
	if steps, devs := run(whole, dllm.TrainOptions{}); steps != 4 || devs != 2 {
		t.Error(steps, devs)
	}
	first := must(m.NewTrainer(set, recipe, dllm.TrainOptions{Dev: set}))
	must(first.Step(ctx))
	if err := first.Save(stopped); err != nil {
		t.Fatal(err)
	}
	run(resumed, dllm.TrainOptions{Resume: stopped})
	rows := func(dir string) []dllm.Emotions { return must(must(m.OpenClassifier(dir)).PredictAll(ctx, set)) }
	if !reflect.DeepEqual(rows(whole), rows(resumed)) {
		t.Error("a resumed run made another adapter")
	}
	merged, small := filepath.Join(work, "merged"), filepath.Join(work, "small")
	if err := dllm.Merge(ctx, tiny(), whole, merged, nil); err != nil {
		t.Fatal(err)
	}
	heard := 0
	count := func(done, all int) bool { heard++; return all == 28 }
	if err := dllm.Quantize(ctx, merged, small, 8, count); err != nil || heard != 29 {
		t.Fatal(err, heard)
	}
	labels := must(must(dllm.Open(ctx, nil, small)).OpenClassifier(small)).Labels()
	if want := must(m.OpenClassifier(whole)).Labels(); !reflect.DeepEqual(labels, want) {
		t.Error(labels, want)
	}
	err := dllm.Quantize(ctx, merged, small, 4, func(done, all int) bool { return false })
	if !errors.Is(err, dllm.ErrCancelled) {
		t.Error(err)
	}
	if err := dllm.ImportGGUF(ctx, "no/such/file", small, nil); !errors.Is(err, dllm.ErrNotFound) {
		t.Error(err)
	}
	bf16, int8 := must(dllm.Estimate(tiny(), dllm.BF16)), must(dllm.Estimate(tiny(), dllm.Int8))
	if int8.Weights >= bf16.Weights || int8.CachePerToken != bf16.CachePerToken {
		t.Error(bf16, int8)
	}
	if info := must(must(dllm.OpenWith(ctx, nil, tiny(), dllm.ModelOptions{Precision: dllm.Int4, NoMap: true})).Info()); !strings.Contains(info, "int4") {
		t.Error(info)
	}
	trained := must(m.OpenClassifier(whole))
	for method, want := range map[dllm.Method]string{dllm.WhyTurns: `"words":[]`, dllm.WhyWords: `"won!"`, dllm.WhyGradients: `"integral"`} {
		why := must(trained.Why(ctx, method, trained.Labels()[0], dllm.Turn{Speaker: "Ann", Text: "We won!"}, dllm.Turn{Speaker: "Bo", Text: "I see"}))
		if !strings.Contains(why, want) {
			t.Error(why)
		}
	}
	if _, err := trained.Why(ctx, dllm.WhyTurns, "envy"); err == nil {
		t.Error("a label that is not there")
	}
	if report := must(trained.Evaluate(ctx, set)); !strings.Contains(report, "weighted_f1") {
		t.Error(report)
	}
}

func TestAContextEndsACall(t *testing.T) {
	m := model()
	trainer := must(m.NewTrainer(must(dllm.ParseDataset(ctx, data)), "[train]\nepochs = 1000000\n", dllm.TrainOptions{}))
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	var last error
	for _, err := range trainer.Events(short) {
		last = err
	}
	if !errors.Is(last, context.DeadlineExceeded) {
		t.Error(last)
	}
	if _, err := trainer.Step(ctx); err != nil { // it goes on
		t.Error(err)
	}
}

func TestGoroutinesShareAModel(t *testing.T) {
	m := model()
	c := must(m.NewClassifier("good", "bad"))
	want := must(c.Predict(ctx, dllm.Turn{Speaker: "Ann", Text: "We won!"}))
	var all sync.WaitGroup
	for range 8 {
		all.Add(1)
		go func() {
			defer all.Done()
			if got := must(c.Predict(ctx, dllm.Turn{Speaker: "Ann", Text: "We won!"})); !reflect.DeepEqual(got, want) {
				t.Errorf("%v and %v", got, want)
			}
		}()
	}
	all.Wait()
	runtime.GC() // what nobody holds is freed
}

func Example() {
	m := must(dllm.Open(ctx, must(dllm.NewRuntime(1, dllm.CPU)), tiny()))
	defer m.Close()
	talk := must(must(m.NewClassifier()).NewConversation())
	emotions := must(talk.Say(ctx, "Ann", "We won! What a lovely day!"))
	label, p := emotions.Best()
	println(label, p)
}
