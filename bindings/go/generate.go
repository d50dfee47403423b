package dialoguellm

/*
#include <dialoguellm.h>
extern int32_t dllmGoText(void *user, char *text, size_t len);
*/
import "C"

import (
	"context"
	"runtime"
	"runtime/cgo"
	"unsafe"
)

// GenerateOptions say how a text is continued; the zero value takes the likeliest token, 256 times at most.
type GenerateOptions struct {
	MaxTokens                            int
	Temperature, TopP, RepetitionPenalty float32
	TopK                                 int
	Seed                                 uint64
	Stops                                []string
	// Chat writes the prompt as a message in the model's own chat format, behind a System message if there is one.
	Chat   bool
	System string
	// Beams above 1 are kept at once and give the likeliest text as a whole, instead of drawing token by token.
	Beams int
	// Adapter may be nil.
	Adapter *Adapter
}

//export dllmGoText
func dllmGoText(user unsafe.Pointer, text *C.char, size C.size_t) C.int32_t {
	hear := (*(*cgo.Handle)(user)).Value().(func(string) bool)
	if hear(C.GoStringN(text, C.int(size))) {
		return 0
	}
	return 1
}

// Generate continues a prompt. hear, which may be nil, gets the text piece by piece and ends it by returning false.
func (m *Model) Generate(ctx context.Context, prompt string, how GenerateOptions, hear func(piece string) bool) (string, error) {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	options := C.dllm_generate_options{
		struct_size: C.sizeof_dllm_generate_options, max_tokens: C.uint32_t(how.MaxTokens), temperature: C.float(how.Temperature),
		top_p: C.float(how.TopP), top_k: C.uint32_t(how.TopK), repetition_penalty: C.float(how.RepetitionPenalty),
		seed: C.uint64_t(how.Seed), stops: views(how.Stops, &pinner), n_stops: C.uint64_t(len(how.Stops)), beams: C.uint32_t(how.Beams),
	}
	if how.Chat {
		options.chat = 1
	}
	if how.System != "" {
		text, free := owned(how.System)
		defer free()
		options.system = text
	}
	var callback C.dllm_text_fn
	var user unsafe.Pointer
	if hear != nil {
		handle := cgo.NewHandle(hear)
		defer handle.Delete()
		pinner.Pin(&handle)
		callback, user = C.dllm_text_fn(C.dllmGoText), unsafe.Pointer(&handle)
	}
	data, size := bytesOf(prompt)
	var text *C.dllm_string
	err := once(ctx, func(cancel *C.dllm_cancel) error {
		var err *C.dllm_error
		status := C.dllm_model_generate(m.p, how.Adapter.handle(), data, size, &options, cancel, callback, user, &text, &err)
		return errorOf(status, err)
	})
	runtime.KeepAlive(m)
	runtime.KeepAlive(how.Adapter)
	if err != nil {
		return "", err
	}
	return taken(text), nil
}
