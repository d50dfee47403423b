package dialoguellm

/*
#include <dialoguellm.h>
*/
import "C"

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"time"
	"unsafe"
)

// Dataset holds dialogues, or prompts with completions.
type Dataset struct {
	p       *C.dllm_dataset
	cleanup runtime.Cleanup
}

func newDataset(made *C.dllm_dataset) *Dataset {
	d := &Dataset{p: made}
	d.cleanup = runtime.AddCleanup(d, func(p *C.dllm_dataset) { C.dllm_dataset_free(p) }, made)
	return d
}

// OpenDataset reads "KIND:PATH", such as "meld:DIR" or "jsonl:FILE"; dllm_dataset_open in the header lists the kinds. split is
// "train", "dev" or "test". A label that is not among labels is an error; none: a set's own, any for jsonl and log.
func OpenDataset(ctx context.Context, spec, split string, labels ...string) (*Dataset, error) {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	known := views(labels, &pinner)
	cSpec, freeSpec := owned(spec)
	defer freeSpec()
	cSplit, freeSplit := owned(split)
	defer freeSplit()
	var made *C.dllm_dataset
	err := once(ctx, func(cancel *C.dllm_cancel) error {
		var err *C.dllm_error
		status := C.dllm_dataset_open(cSpec, cSplit, known, C.size_t(len(labels)), cancel, &made, &err)
		return errorOf(status, err)
	})
	if err != nil {
		return nil, err
	}
	return newDataset(made), nil
}

// ParseDataset reads dialogues from JSON lines in memory; labels as for OpenDataset.
func ParseDataset(ctx context.Context, jsonLines string, labels ...string) (*Dataset, error) {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	known := views(labels, &pinner)
	data, size := bytesOf(jsonLines)
	var made *C.dllm_dataset
	err := once(ctx, func(cancel *C.dllm_cancel) error {
		var err *C.dllm_error
		status := C.dllm_dataset_parse(data, size, known, C.size_t(len(labels)), cancel, &made, &err)
		return errorOf(status, err)
	})
	if err != nil {
		return nil, err
	}
	return newDataset(made), nil
}

// Close frees the dataset; trainers keep what they need of it.
func (d *Dataset) Close() {
	if d.p != nil {
		d.cleanup.Stop()
		C.dllm_dataset_free(d.p)
		d.p = nil
	}
}

// Dialogues are how many dialogues it holds.
func (d *Dataset) Dialogues() int {
	defer runtime.KeepAlive(d)
	return int(C.dllm_dataset_n_dialogues(d.p))
}

// Turns are how many turns all its dialogues have.
func (d *Dataset) Turns() int {
	defer runtime.KeepAlive(d)
	return int(C.dllm_dataset_n_turns(d.p, ^C.size_t(0)))
}

// TurnsOf are how many turns one dialogue has.
func (d *Dataset) TurnsOf(dialogue int) int {
	defer runtime.KeepAlive(d)
	return int(C.dllm_dataset_n_turns(d.p, C.size_t(dialogue)))
}

// Stats are dialogues, turns, and turns of every label, as JSON.
func (d *Dataset) Stats() (string, error) {
	return textOf(d, func(text **C.dllm_string, err **C.dllm_error) C.dllm_status {
		return C.dllm_dataset_stats(d.p, text, err)
	})
}

// JSONLines are all dialogues as ParseDataset reads them.
func (d *Dataset) JSONLines() (string, error) {
	return textOf(d, func(text **C.dllm_string, err **C.dllm_error) C.dllm_status {
		return C.dllm_dataset_json_lines(d.p, text, err)
	})
}

// Baseline gives the figures on judged, as JSON, of a bag of words that learned from d: the bar that a model has to clear.
func (d *Dataset) Baseline(judged *Dataset) (string, error) {
	defer runtime.KeepAlive(judged)
	return textOf(d, func(text **C.dllm_string, err **C.dllm_error) C.dllm_status {
		return C.dllm_dataset_baseline(d.p, judged.p, text, err)
	})
}

// PairedBootstrap says whether answers b are better than answers a by more than chance, as JSON: the difference of their
// weighted F1, its 95 % interval over resamples of whole dialogues (of single turns where dialogueTurns is empty), and the
// part of them in which b is not better. Labels are numbers below labels.
func PairedBootstrap(labels int, gold, a, b []uint32, dialogueTurns []int, resamples int, seed uint64) (string, error) {
	if len(gold) != len(a) || len(gold) != len(b) {
		return "", fmt.Errorf("%d gold labels, %d and %d answers", len(gold), len(a), len(b))
	}
	turns := make([]C.size_t, len(dialogueTurns))
	for i, n := range dialogueTurns {
		turns[i] = C.size_t(n)
	}
	numbers := func(x []uint32) *C.uint32_t { return (*C.uint32_t)(unsafe.Pointer(unsafe.SliceData(x))) }
	return textOf(nil, func(text **C.dllm_string, err **C.dllm_error) C.dllm_status {
		return C.dllm_paired_bootstrap(C.size_t(labels), numbers(gold), numbers(a), numbers(b), C.size_t(len(gold)),
			unsafe.SliceData(turns), C.size_t(len(turns)), C.size_t(resamples), C.uint64_t(seed), text, err)
	})
}

// TrainOptions say how a run begins; the zero value begins a new one.
type TrainOptions struct {
	// Dev chooses the epoch and is what calibration is fitted on.
	Dev *Dataset
	// Resume goes on with the run whose checkpoint this folder is.
	Resume string
	// InitAdapter begins with this adapter.
	InitAdapter string
	// Metrics gets a line of JSON per step and per dev score.
	Metrics string
	// BaseName is the base model's name in PEFT's adapter_config.json.
	BaseName string
}

// Event is a step of the optimiser, or a dev score.
type Event struct {
	// Dev says that it is a dev score.
	Dev                bool
	Step, Steps, Epoch int
	Loss, GradNorm, LR float64
	Tokens             int
	Took               time.Duration
	DevScore           float64
	Best, Done         bool
}

// Trainer trains an adapter. One call at a time; another gets ErrBusy.
type Trainer struct {
	p       *C.dllm_trainer
	stop    stopper
	cleanup runtime.Cleanup
}

type trainerHandles struct {
	p    *C.dllm_trainer
	stop stopper
}

func (h trainerHandles) free() {
	C.dllm_trainer_free(h.p)
	h.stop.free()
}

// NewTrainer begins a run on data; recipe is TOML text.
func (m *Model) NewTrainer(data *Dataset, recipe string, how TrainOptions) (*Trainer, error) {
	stop, fail := newStopper()
	if fail != nil {
		return nil, fail
	}
	options := C.dllm_trainer_options{struct_size: C.sizeof_dllm_trainer_options, cancel: stop.handle}
	for _, path := range []struct {
		to   **C.char
		text string
	}{{&options.resume, how.Resume}, {&options.init_adapter, how.InitAdapter}, {&options.metrics, how.Metrics}, {&options.base_name, how.BaseName}} {
		if path.text != "" {
			text, free := owned(path.text)
			defer free()
			*path.to = text
		}
	}
	var dev *C.dllm_dataset
	if how.Dev != nil {
		dev = how.Dev.p
	}
	text, size := bytesOf(recipe)
	var made *C.dllm_trainer
	var err *C.dllm_error
	status := C.dllm_trainer_new(m.p, data.p, dev, text, size, &options, &made, &err)
	runtime.KeepAlive(m)
	runtime.KeepAlive(data)
	runtime.KeepAlive(how.Dev)
	if err := errorOf(status, err); err != nil {
		stop.free()
		return nil, err
	}
	t := &Trainer{p: made, stop: stop}
	t.cleanup = runtime.AddCleanup(t, trainerHandles.free, trainerHandles{made, stop})
	return t, nil
}

// Close frees the trainer; what was not saved is lost.
func (t *Trainer) Close() {
	if t.p != nil {
		t.cleanup.Stop()
		trainerHandles{t.p, t.stop}.free()
		t.p = nil
	}
}

// Step makes a step of the optimiser, or the dev score that is due.
func (t *Trainer) Step(ctx context.Context) (Event, error) {
	report := C.dllm_train_report{struct_size: C.sizeof_dllm_train_report}
	err := t.stop.during(ctx, func() error {
		var err *C.dllm_error
		status := C.dllm_trainer_step(t.p, &report, &err)
		return errorOf(status, err)
	})
	runtime.KeepAlive(t)
	return Event{
		Dev:  report.kind == C.DLLM_TRAIN_DEV,
		Step: int(report.step), Steps: int(report.steps), Epoch: int(report.epoch),
		Loss: float64(report.loss), GradNorm: float64(report.grad_norm), LR: float64(report.learning_rate),
		Tokens: int(report.tokens), Took: time.Duration(float64(report.seconds) * float64(time.Second)),
		DevScore: float64(report.dev_score), Best: report.is_best != 0, Done: report.done != 0,
	}, err
}

// Events makes every step and dev score that is left, each when it is asked for; after an error there are no more.
func (t *Trainer) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			event, err := t.Step(ctx)
			if !yield(event, err) || err != nil || event.Done {
				return
			}
		}
	}
}

// Save writes a checkpoint; a kill leaves the old one or the new one.
func (t *Trainer) Save(dir string) error {
	return toFolder(t, dir, func(path *C.char, err **C.dllm_error) C.dllm_status { return C.dllm_trainer_save(t.p, path, err) })
}

// Finish ends the run; dir becomes the folder for OpenClassifier. What the run did, as JSON.
func (t *Trainer) Finish(dir string) (string, error) {
	path, free := owned(dir)
	defer free()
	return textOf(t, func(text **C.dllm_string, err **C.dllm_error) C.dllm_status {
		return C.dllm_trainer_finish(t.p, path, text, err)
	})
}
