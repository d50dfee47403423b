// Package dialoguellm names the emotion of every turn of a conversation, with a LLaMA that fits in the process, and
// fine-tunes it with LoRA. What the functions do is said in the C header, dialoguellm.h; a method is the function of its name.
//
// Handles are freed by Close, or with the value. Every failure is an *Error, for errors.Is with ErrNotFound and the like; a
// call whose context ends returns the context's error, within one layer of the model.
package dialoguellm

/*
#cgo pkg-config: dialoguellm
#include <dialoguellm.h>
#include <stdlib.h>
extern int32_t dllmGoDescribe(void *user, struct dllm_turn *turn, char *clip, struct dllm_str *description);
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/cgo"
	"slices"
	"unsafe"
)

// Error is a failure of the library: its status and its sentence.
type Error struct {
	Status   int
	Sentence string
}

// What errors.Is looks for.
var (
	ErrInvalidArgument = &Error{Status: C.DLLM_STATUS_INVALID_ARGUMENT}
	ErrNotFound        = &Error{Status: C.DLLM_STATUS_NOT_FOUND}
	ErrIO              = &Error{Status: C.DLLM_STATUS_IO}
	ErrBadFile         = &Error{Status: C.DLLM_STATUS_BAD_FILE}
	ErrUnsupported     = &Error{Status: C.DLLM_STATUS_UNSUPPORTED}
	ErrOutOfMemory     = &Error{Status: C.DLLM_STATUS_OUT_OF_MEMORY}
	ErrContextFull     = &Error{Status: C.DLLM_STATUS_CONTEXT_FULL}
	ErrBusy            = &Error{Status: C.DLLM_STATUS_BUSY}
	ErrCancelled       = &Error{Status: C.DLLM_STATUS_CANCELLED}
	ErrDeviceLost      = &Error{Status: C.DLLM_STATUS_DEVICE_LOST}
	ErrNumeric         = &Error{Status: C.DLLM_STATUS_NUMERIC}
)

func (e *Error) Error() string {
	if e.Sentence == "" {
		return C.GoString(C.dllm_status_name(C.dllm_status(e.Status)))
	}
	return e.Sentence
}

// Is says whether two errors are of one status.
func (e *Error) Is(target error) bool {
	var other *Error
	return errors.As(target, &other) && other.Status == e.Status
}

// errorOf is the failure of a call; err is freed.
func errorOf(status C.dllm_status, err *C.dllm_error) error {
	if status == C.DLLM_STATUS_OK {
		return nil
	}
	defer C.dllm_error_free(err)
	return &Error{int(status), C.GoString(C.dllm_error_message(err))}
}

// taken is the text of a string that the library handed out.
func taken(text *C.dllm_string) string {
	defer C.dllm_string_free(text)
	return C.GoStringN(C.dllm_string_data(text), C.int(C.dllm_string_len(text)))
}

// textOf is the text that a call hands out; of stays alive during the call.
func textOf(of any, call func(text **C.dllm_string, err **C.dllm_error) C.dllm_status) (string, error) {
	defer runtime.KeepAlive(of)
	var text *C.dllm_string
	var err *C.dllm_error
	status := call(&text, &err)
	if err := errorOf(status, err); err != nil {
		return "", err
	}
	return taken(text), nil
}

// toFolder makes a call that writes the folder dir; of stays alive during the call.
func toFolder(of any, dir string, call func(path *C.char, err **C.dllm_error) C.dllm_status) error {
	defer runtime.KeepAlive(of)
	path, free := owned(dir)
	defer free()
	var err *C.dllm_error
	status := call(path, &err)
	return errorOf(status, err)
}

// Version is the library's version.
func Version() string { return C.GoString(C.dllm_version()) }

func init() {
	if has := C.dllm_abi_version(); has != C.DLLM_ABI_VERSION {
		panic(fmt.Sprintf("libdialoguellm has ABI %d, this package is built for %d", has, C.DLLM_ABI_VERSION))
	}
}

// owned is a C text that lives until freed.
func owned(text string) (*C.char, func()) {
	c := C.CString(text)
	return c, func() { C.free(unsafe.Pointer(c)) }
}

// view is a text of Go's that stays where it is while the pinner holds it.
func view(text string, pinner *runtime.Pinner) C.dllm_str {
	if text == "" {
		return C.dllm_str{}
	}
	data := unsafe.StringData(text)
	pinner.Pin(data)
	return C.dllm_str{data: (*C.char)(unsafe.Pointer(data)), len: C.uint64_t(len(text))}
}

// bytesOf is a text for a call that takes its address and length.
func bytesOf(text string) (*C.char, C.size_t) {
	return (*C.char)(unsafe.Pointer(unsafe.StringData(text))), C.size_t(len(text))
}

// views are texts of Go's that stay where they are while the pinner holds them; NULL for none.
func views(texts []string, pinner *runtime.Pinner) *C.dllm_str {
	if len(texts) == 0 {
		return nil
	}
	all := make([]C.dllm_str, len(texts))
	for i, text := range texts {
		all[i] = view(text, pinner)
	}
	pinner.Pin(&all[0])
	return &all[0]
}

// stopper sets a cancel handle when a context ends.
type stopper struct{ handle *C.dllm_cancel }

func newStopper() (stopper, error) {
	var made *C.dllm_cancel
	var err *C.dllm_error
	status := C.dllm_cancel_new(&made, &err)
	return stopper{made}, errorOf(status, err)
}

func (s stopper) free() { C.dllm_cancel_free(s.handle) }

// during runs a call that the context may end.
func (s stopper) during(ctx context.Context, call func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { C.dllm_cancel_set(s.handle); close(stopped) })
	err := call()
	if !stop() {
		<-stopped
		C.dllm_cancel_clear(s.handle)
	}
	if errors.Is(err, ErrCancelled) && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// once is during with a cancel handle of its own.
func once(ctx context.Context, call func(cancel *C.dllm_cancel) error) error {
	s, err := newStopper()
	if err != nil {
		return err
	}
	defer s.free()
	return s.during(ctx, func() error { return call(s.handle) })
}

// Device says where to compute.
type Device uint32

// Where to compute.
const (
	Auto Device = C.DLLM_DEVICE_AUTO
	CPU  Device = C.DLLM_DEVICE_CPU
	CUDA Device = C.DLLM_DEVICE_CUDA
)

// Runtime has the threads and the device that models share.
type Runtime struct {
	p       *C.dllm_runtime
	cleanup runtime.Cleanup
}

// NewRuntime makes a runtime; threads 0 is one a core.
func NewRuntime(threads int, device Device) (*Runtime, error) {
	options := C.dllm_runtime_options{struct_size: C.sizeof_dllm_runtime_options, threads: C.uint32_t(threads), device: C.uint32_t(device)}
	var made *C.dllm_runtime
	var err *C.dllm_error
	if err := errorOf(C.dllm_runtime_new(&options, &made, &err), err); err != nil {
		return nil, err
	}
	r := &Runtime{p: made}
	r.cleanup = runtime.AddCleanup(r, func(p *C.dllm_runtime) { C.dllm_runtime_free(p) }, made)
	return r, nil
}

// Close frees the runtime; models keep what they need of it.
func (r *Runtime) Close() {
	if r.p != nil {
		r.cleanup.Stop()
		C.dllm_runtime_free(r.p)
		r.p = nil
	}
}

// Model has weights and tokenizer; it never changes, and any number of goroutines may use it at once.
type Model struct {
	p       *C.dllm_model
	cleanup runtime.Cleanup
}

// Open opens a model folder in bf16; r may be nil.
func Open(ctx context.Context, r *Runtime, dir string) (*Model, error) {
	return OpenWith(ctx, r, dir, ModelOptions{})
}

// ModelOptions say how a model is opened; the zero value maps the files and computes in bf16.
type ModelOptions struct {
	Precision Precision
	// NoMap reads the weights into memory instead of mapping the files.
	NoMap bool
}

// OpenWith opens a model folder otherwise; r may be nil.
func OpenWith(ctx context.Context, r *Runtime, dir string, how ModelOptions) (*Model, error) {
	path, free := owned(dir)
	defer free()
	options := C.dllm_model_options{struct_size: C.sizeof_dllm_model_options, precision: C.uint32_t(how.Precision)}
	if how.NoMap {
		options.no_map = 1
	}
	var made *C.dllm_model
	var on *C.dllm_runtime
	if r != nil {
		on = r.p
	}
	err := once(ctx, func(cancel *C.dllm_cancel) error {
		var err *C.dllm_error
		status := C.dllm_model_open(on, path, &options, cancel, &made, &err)
		return errorOf(status, err)
	})
	runtime.KeepAlive(r)
	if err != nil {
		return nil, err
	}
	m := &Model{p: made}
	m.cleanup = runtime.AddCleanup(m, func(p *C.dllm_model) { C.dllm_model_free(p) }, made)
	return m, nil
}

// Close frees the model; what was made from it keeps its own hold.
func (m *Model) Close() {
	if m.p != nil {
		m.cleanup.Stop()
		C.dllm_model_free(m.p)
		m.p = nil
	}
}

// Info is what the model is, as JSON.
func (m *Model) Info() (string, error) {
	return textOf(m, func(text **C.dllm_string, err **C.dllm_error) C.dllm_status { return C.dllm_model_info(m.p, text, err) })
}

// Turn is a turn of a dialogue; Visual and Emotion may be empty.
type Turn struct{ Speaker, Text, Visual, Emotion string }

func (t Turn) c(pinner *runtime.Pinner) C.dllm_turn {
	return C.dllm_turn{speaker: view(t.Speaker, pinner), text: view(t.Text, pinner), visual: view(t.Visual, pinner), emotion: view(t.Emotion, pinner)}
}

// Emotions are probabilities by label, in the classifier's order.
type Emotions struct {
	Labels        []string
	Probabilities []float32
}

// Best is the likeliest label and its probability; the first of equals.
func (e Emotions) Best() (string, float32) {
	best := 0
	for i, p := range e.Probabilities {
		if p > e.Probabilities[best] {
			best = i
		}
	}
	return e.Labels[best], e.Probabilities[best]
}

// Classifier names emotions; it never changes, and any number of goroutines may use it at once.
type Classifier struct {
	p       *C.dllm_classifier
	labels  []string
	cleanup runtime.Cleanup
}

func newClassifier(made *C.dllm_classifier) *Classifier {
	c := &Classifier{p: made}
	for i := C.size_t(0); i < C.dllm_classifier_n_labels(made); i++ {
		c.labels = append(c.labels, C.GoString(C.dllm_classifier_label(made, i)))
	}
	c.cleanup = runtime.AddCleanup(c, func(p *C.dllm_classifier) { C.dllm_classifier_free(p) }, made)
	return c
}

// OpenClassifier opens the classifier that a folder describes.
func (m *Model) OpenClassifier(dir string) (*Classifier, error) {
	path, free := owned(dir)
	defer free()
	var made *C.dllm_classifier
	var err *C.dllm_error
	status := C.dllm_classifier_open(m.p, path, &made, &err)
	runtime.KeepAlive(m)
	if err := errorOf(status, err); err != nil {
		return nil, err
	}
	return newClassifier(made), nil
}

// NewClassifier makes a classifier of labels of one's own (none: MELD's seven) and the dialogue template.
func (m *Model) NewClassifier(labels ...string) (*Classifier, error) {
	return m.NewClassifierWith(ClassifierOptions{Labels: labels})
}

// ClassifierOptions say what a classifier asks; the zero value is MELD's seven labels and the dialogue template.
type ClassifierOptions struct {
	Labels []string
	// Words are what the model reads and writes for the labels; none: the labels.
	Words []string
	// Template is "dialogue", "dialoguellm" or TOML text.
	Template string
	// Window is how many previous turns are shown and one more; 0 as the template says, math.MaxUint64 for all.
	Window uint64
	// Adapter was trained without a file that says the rest, or is nil.
	Adapter *Adapter
}

// NewClassifierWith makes a classifier of labels and a template of one's own.
func (m *Model) NewClassifierWith(how ClassifierOptions) (*Classifier, error) {
	if len(how.Words) > 0 && len(how.Words) != len(how.Labels) {
		return nil, &Error{int(C.DLLM_STATUS_INVALID_ARGUMENT), fmt.Sprintf("%d labels and %d words for them", len(how.Labels), len(how.Words))}
	}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	options := C.dllm_classifier_options{
		struct_size: C.sizeof_dllm_classifier_options, n_labels: C.uint32_t(len(how.Labels)),
		labels: views(how.Labels, &pinner), words: views(how.Words, &pinner), window: C.uint64_t(how.Window),
	}
	if how.Template != "" {
		text, free := owned(how.Template)
		defer free()
		options.template_text = text
	}
	var made *C.dllm_classifier
	var err *C.dllm_error
	status := C.dllm_classifier_new(m.p, how.Adapter.handle(), &options, &made, &err)
	runtime.KeepAlive(m)
	runtime.KeepAlive(how.Adapter)
	if err := errorOf(status, err); err != nil {
		return nil, err
	}
	return newClassifier(made), nil
}

// Close frees the classifier; conversations keep their own hold.
func (c *Classifier) Close() {
	if c.p != nil {
		c.cleanup.Stop()
		C.dllm_classifier_free(c.p)
		c.p = nil
	}
}

// Labels are the labels in the order of the probabilities.
func (c *Classifier) Labels() []string { return c.labels }

func (c *Classifier) rows(n int, call func(p *C.float, capacity C.size_t) error) ([]Emotions, error) {
	all := make([]float32, n*len(c.labels)+1) // one more, so that there is an address
	err := call((*C.float)(unsafe.Pointer(&all[0])), C.size_t(n*len(c.labels)))
	runtime.KeepAlive(c)
	if err != nil {
		return nil, err
	}
	rows := make([]Emotions, n)
	for i := range rows {
		rows[i] = Emotions{c.labels, all[i*len(c.labels) : (i+1)*len(c.labels)]}
	}
	return rows, nil
}

// Predict names the emotion of every turn of one dialogue.
func (c *Classifier) Predict(ctx context.Context, turns ...Turn) ([]Emotions, error) {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	views := viewsOf(turns, &pinner)
	return c.rows(len(turns), func(p *C.float, capacity C.size_t) error {
		return once(ctx, func(cancel *C.dllm_cancel) error {
			var err *C.dllm_error
			status := C.dllm_classifier_predict(c.p, &views[0], C.size_t(len(turns)), cancel, p, capacity, &err)
			return errorOf(status, err)
		})
	})
}

// PredictAll names the emotion of every turn of every dialogue.
func (c *Classifier) PredictAll(ctx context.Context, data *Dataset) ([]Emotions, error) {
	return c.rows(data.Turns(), func(p *C.float, capacity C.size_t) error {
		defer runtime.KeepAlive(data)
		return once(ctx, func(cancel *C.dllm_cancel) error {
			var err *C.dllm_error
			status := C.dllm_classifier_predict_all(c.p, data.p, cancel, p, capacity, &err)
			return errorOf(status, err)
		})
	})
}

// viewsOf has one more than there are turns, so that there is an address.
func viewsOf(turns []Turn, pinner *runtime.Pinner) []C.dllm_turn {
	views := make([]C.dllm_turn, len(turns)+1)
	for i, turn := range turns {
		views[i] = turn.c(pinner)
	}
	return views
}

// A Method of Why.
type Method uint32

// What Why leaves out, or that it shares the whole out among all words.
const (
	WhyTurns     Method = C.DLLM_WHY_TURNS
	WhyWords     Method = C.DLLM_WHY_WORDS
	WhyGradients Method = C.DLLM_WHY_GRADIENTS
)

// Why says what made the last turn's label, by default ("") the likeliest one: JSON, as dllm_classifier_why says.
func (c *Classifier) Why(ctx context.Context, method Method, label string, turns ...Turn) (string, error) {
	number := C.size_t(C.DLLM_ALL)
	if label != "" {
		at := slices.Index(c.labels, label)
		if at < 0 {
			return "", fmt.Errorf("there is no label %q among %q", label, c.labels)
		}
		number = C.size_t(at)
	}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	views := viewsOf(turns, &pinner)
	var text *C.dllm_string
	err := once(ctx, func(cancel *C.dllm_cancel) error {
		var err *C.dllm_error
		n, method := C.size_t(len(turns)), C.uint32_t(method)
		status := C.dllm_classifier_why(c.p, &views[0], n, number, method, cancel, &text, &err)
		return errorOf(status, err)
	})
	runtime.KeepAlive(c)
	if err != nil {
		return "", err
	}
	return taken(text), nil
}

// Evaluate gives figures on labelled turns, as JSON.
func (c *Classifier) Evaluate(ctx context.Context, data *Dataset) (string, error) {
	var text *C.dllm_string
	err := once(ctx, func(cancel *C.dllm_cancel) error {
		var err *C.dllm_error
		status := C.dllm_classifier_evaluate(c.p, data.p, cancel, &text, &err)
		return errorOf(status, err)
	})
	runtime.KeepAlive(c)
	runtime.KeepAlive(data)
	if err != nil {
		return "", err
	}
	return taken(text), nil
}

// Calibrated is the same classifier with a temperature fitted on labelled turns: never those it is judged by.
func (c *Classifier) Calibrated(ctx context.Context, data *Dataset) (*Classifier, error) {
	var made *C.dllm_classifier
	err := once(ctx, func(cancel *C.dllm_cancel) error {
		var err *C.dllm_error
		status := C.dllm_classifier_calibrate(c.p, data.p, cancel, &made, &err)
		return errorOf(status, err)
	})
	runtime.KeepAlive(c)
	runtime.KeepAlive(data)
	if err != nil {
		return nil, err
	}
	return newClassifier(made), nil
}

// Temperature divides the scores; 1 before calibration.
func (c *Classifier) Temperature() float64 {
	defer runtime.KeepAlive(c)
	return float64(C.dllm_classifier_temperature(c.p))
}

// Save writes the folder that OpenClassifier opens; the classifier must have an adapter.
func (c *Classifier) Save(dir string) error {
	return toFolder(c, dir, func(path *C.char, err **C.dllm_error) C.dllm_status { return C.dllm_classifier_save(c.p, path, err) })
}

// Conversation is one dialogue as it happens. One call at a time; another gets ErrBusy.
type Conversation struct {
	p       *C.dllm_conversation
	stop    stopper
	labels  []string
	cleanup runtime.Cleanup
}

type conversationHandles struct {
	p    *C.dllm_conversation
	stop stopper
}

func (h conversationHandles) free() {
	C.dllm_conversation_free(h.p)
	h.stop.free()
}

// NewConversation begins a conversation.
func (c *Classifier) NewConversation() (*Conversation, error) { return c.conversation(0, nil) }

// NewConversationWithin begins a conversation of at most so many tokens: the oldest turns are dropped then.
func (c *Classifier) NewConversationWithin(tokens int) (*Conversation, error) {
	return c.conversation(tokens, nil)
}

// Restore goes on with a conversation that Save wrote.
func (c *Classifier) Restore(saved string) (*Conversation, error) { return c.conversation(0, &saved) }

func (c *Classifier) conversation(tokens int, saved *string) (*Conversation, error) {
	stop, fail := newStopper()
	if fail != nil {
		return nil, fail
	}
	options := C.dllm_conversation_options{
		struct_size: C.sizeof_dllm_conversation_options, context: C.uint64_t(tokens), cancel: stop.handle,
	}
	var made *C.dllm_conversation
	var err *C.dllm_error
	var status C.dllm_status
	if saved == nil {
		status = C.dllm_conversation_new(c.p, &options, &made, &err)
	} else {
		data, size := bytesOf(*saved)
		status = C.dllm_conversation_restore(c.p, &options, data, size, &made, nil, &err)
	}
	runtime.KeepAlive(c)
	if err := errorOf(status, err); err != nil {
		stop.free()
		return nil, err
	}
	t := &Conversation{p: made, stop: stop, labels: c.labels}
	t.cleanup = runtime.AddCleanup(t, conversationHandles.free, conversationHandles{made, stop})
	return t, nil
}

// Close frees the conversation.
func (t *Conversation) Close() {
	if t.p != nil {
		t.cleanup.Stop()
		conversationHandles{t.p, t.stop}.free()
		t.p = nil
	}
}

// Add listens to a turn, which costs its own tokens.
func (t *Conversation) Add(ctx context.Context, turn Turn) error {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	view := turn.c(&pinner)
	defer runtime.KeepAlive(t)
	return t.stop.during(ctx, func() error {
		var err *C.dllm_error
		status := C.dllm_conversation_add_turn(t.p, &view, nil, &err)
		return errorOf(status, err)
	})
}

// AddClip listens to a turn of which there is a picture or a film: where the template shows what is seen and the turn does
// not say it, describe is asked, once. Its error ends the call.
func (t *Conversation) AddClip(ctx context.Context, turn Turn, clip string, describe func(clip string) (string, error)) error {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	view := turn.c(&pinner)
	seer := &seer{describe: describe, pinner: &pinner}
	handle := cgo.NewHandle(seer)
	defer handle.Delete()
	pinner.Pin(&handle)
	file, free := owned(clip)
	defer free()
	defer runtime.KeepAlive(t)
	err := t.stop.during(ctx, func() error {
		var err *C.dllm_error
		status := C.dllm_conversation_add_clip(t.p, &view, file, C.dllm_describe_fn(C.dllmGoDescribe), unsafe.Pointer(&handle), nil, &err)
		return errorOf(status, err)
	})
	if seer.err != nil {
		return seer.err
	}
	return err
}

// seer describes a clip once.
type seer struct {
	describe func(clip string) (string, error)
	pinner   *runtime.Pinner
	err      error
}

//export dllmGoDescribe
func dllmGoDescribe(user unsafe.Pointer, _ *C.dllm_turn, clip *C.char, description *C.dllm_str) C.int32_t {
	seer := (*(*cgo.Handle)(user)).Value().(*seer)
	text, err := seer.describe(C.GoString(clip))
	if err != nil {
		seer.err = err
		return 1
	}
	*description = view(text, seer.pinner) // stays where it is until the call returns
	return 0
}

// Ask names the last turn's emotion.
func (t *Conversation) Ask(ctx context.Context) (Emotions, error) {
	p := make([]float32, len(t.labels))
	err := t.stop.during(ctx, func() error {
		var err *C.dllm_error
		status := C.dllm_conversation_ask(t.p, (*C.float)(unsafe.Pointer(&p[0])), C.size_t(len(p)), &err)
		return errorOf(status, err)
	})
	runtime.KeepAlive(t)
	return Emotions{t.labels, p}, err
}

// Say listens to a turn and names its emotion.
func (t *Conversation) Say(ctx context.Context, speaker, text string) (Emotions, error) {
	if err := t.Add(ctx, Turn{Speaker: speaker, Text: text}); err != nil {
		return Emotions{}, err
	}
	return t.Ask(ctx)
}

// Rollback takes back the last turns.
func (t *Conversation) Rollback(turns int) error {
	var err *C.dllm_error
	status := C.dllm_conversation_rollback(t.p, C.size_t(turns), &err)
	runtime.KeepAlive(t)
	return errorOf(status, err)
}

// Save is the conversation as JSON, for Restore.
func (t *Conversation) Save() (string, error) {
	return textOf(t, func(text **C.dllm_string, err **C.dllm_error) C.dllm_status {
		return C.dllm_conversation_save(t.p, text, err)
	})
}

// Turns are how many turns it holds.
func (t *Conversation) Turns() int {
	defer runtime.KeepAlive(t)
	return int(C.dllm_conversation_n_turns(t.p))
}

// Tokens are how many tokens it holds.
func (t *Conversation) Tokens() int {
	defer runtime.KeepAlive(t)
	return int(C.dllm_conversation_n_tokens(t.p))
}
