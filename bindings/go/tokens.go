package dialoguellm

/*
#include <dialoguellm.h>
*/
import "C"

import (
	"context"
	"runtime"
	"unsafe"
)

// VocabSize is how many tokens there are.
func (m *Model) VocabSize() int {
	defer runtime.KeepAlive(m)
	return int(C.dllm_model_vocab_size(m.p))
}

func flag(on bool) C.uint32_t {
	if on {
		return 1
	}
	return 0
}

// Tokenize gives a text's tokens; special adds what the tokenizer puts around a text.
func (m *Model) Tokenize(text string, special bool) ([]uint32, error) {
	defer runtime.KeepAlive(m)
	data, size := bytesOf(text)
	var n C.size_t
	var err *C.dllm_error
	if err := errorOf(C.dllm_model_tokenize(m.p, data, size, flag(special), nil, 0, &n, &err), err); err != nil || n == 0 {
		return nil, err
	}
	ids := make([]uint32, n)
	status := C.dllm_model_tokenize(m.p, data, size, flag(special), (*C.uint32_t)(unsafe.Pointer(&ids[0])), n, &n, &err)
	return ids, errorOf(status, err)
}

// Detokenize gives the text of tokens; skipSpecial leaves out those that are no text.
func (m *Model) Detokenize(ids []uint32, skipSpecial bool) (string, error) {
	at := (*C.uint32_t)(unsafe.Pointer(unsafe.SliceData(ids)))
	return textOf(m, func(text **C.dllm_string, err **C.dllm_error) C.dllm_status {
		return C.dllm_model_detokenize(m.p, at, C.size_t(len(ids)), flag(skipSpecial), text, err)
	})
}

// Logits are those of what comes after tokens, one for every token of the vocabulary; adapter may be nil.
func (m *Model) Logits(ctx context.Context, adapter *Adapter, ids []uint32) ([]float32, error) {
	logits := make([]float32, m.VocabSize())
	at := (*C.uint32_t)(unsafe.Pointer(unsafe.SliceData(ids)))
	err := once(ctx, func(cancel *C.dllm_cancel) error {
		var err *C.dllm_error
		to := (*C.float)(unsafe.Pointer(unsafe.SliceData(logits)))
		status := C.dllm_model_logits(m.p, adapter.handle(), at, C.size_t(len(ids)), cancel, to, C.size_t(len(logits)), &err)
		return errorOf(status, err)
	})
	runtime.KeepAlive(m)
	runtime.KeepAlive(adapter)
	if err != nil {
		return nil, err
	}
	return logits, nil
}

// Score gives the natural logarithms of the probabilities of continuations after a prompt; adapter may be nil.
func (m *Model) Score(ctx context.Context, adapter *Adapter, prompt string, continuations ...string) ([]float64, error) {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	scores, texts := make([]float64, len(continuations)), views(continuations, &pinner)
	data, size := bytesOf(prompt)
	err := once(ctx, func(cancel *C.dllm_cancel) error {
		var err *C.dllm_error
		to := (*C.double)(unsafe.Pointer(unsafe.SliceData(scores)))
		status := C.dllm_model_score(m.p, adapter.handle(), data, size, texts, C.size_t(len(continuations)), cancel, to, &err)
		return errorOf(status, err)
	})
	runtime.KeepAlive(m)
	runtime.KeepAlive(adapter)
	if err != nil {
		return nil, err
	}
	return scores, nil
}
