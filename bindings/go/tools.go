package dialoguellm

/*
#include <dialoguellm.h>
extern int32_t dllmGoProgress(void *user, uint64_t done, uint64_t all);
*/
import "C"

import (
	"context"
	"runtime"
	"runtime/cgo"
	"unsafe"
)

// Precision is what a model computes with.
type Precision uint32

// What a model computes with: weights of 8 or 4 bits need half or a quarter of the memory.
const (
	BF16 Precision = C.DLLM_PRECISION_BF16
	F32  Precision = C.DLLM_PRECISION_F32
	Int8 Precision = C.DLLM_PRECISION_INT8
	Int4 Precision = C.DLLM_PRECISION_INT4
)

// Progress hears how many of how many tensors are done, and ends the call by returning false.
type Progress func(done, all int) bool

//export dllmGoProgress
func dllmGoProgress(user unsafe.Pointer, done, all C.uint64_t) C.int32_t {
	if (*(*cgo.Handle)(user)).Value().(Progress)(int(done), int(all)) {
		return 0
	}
	return 1
}

// making runs a call that makes a model folder.
func making(ctx context.Context, hear Progress, call func(C.dllm_progress_fn, unsafe.Pointer, *C.dllm_cancel, **C.dllm_error) C.dllm_status) error {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	var callback C.dllm_progress_fn
	var user unsafe.Pointer
	if hear != nil {
		handle := cgo.NewHandle(hear)
		defer handle.Delete()
		pinner.Pin(&handle)
		callback, user = C.dllm_progress_fn(C.dllmGoProgress), unsafe.Pointer(&handle)
	}
	return once(ctx, func(cancel *C.dllm_cancel) error {
		var err *C.dllm_error
		status := call(callback, user, cancel, &err)
		return errorOf(status, err)
	})
}

// ImportGGUF makes a model folder of a GGUF file; quantised tensors become bf16. hear may be nil.
func ImportGGUF(ctx context.Context, file, out string, hear Progress) error {
	cFile, freeFile := owned(file)
	defer freeFile()
	cOut, freeOut := owned(out)
	defer freeOut()
	return making(ctx, hear, func(callback C.dllm_progress_fn, user unsafe.Pointer, cancel *C.dllm_cancel, err **C.dllm_error) C.dllm_status {
		return C.dllm_import_gguf(cFile, cOut, C.DLLM_DTYPE_BF16, callback, user, cancel, err)
	})
}

// Merge makes a model folder of a model with an adapter merged into its weights. hear may be nil.
func Merge(ctx context.Context, model, adapter, out string, hear Progress) error {
	cModel, freeModel := owned(model)
	defer freeModel()
	cAdapter, freeAdapter := owned(adapter)
	defer freeAdapter()
	cOut, freeOut := owned(out)
	defer freeOut()
	return making(ctx, hear, func(callback C.dllm_progress_fn, user unsafe.Pointer, cancel *C.dllm_cancel, err **C.dllm_error) C.dllm_status {
		return C.dllm_merge(cModel, cAdapter, cOut, callback, user, cancel, err)
	})
}

// Quantize makes a smaller copy of a model: linear maps in whole numbers of 8 or 4 bits. hear may be nil.
func Quantize(ctx context.Context, model, out string, bits int, hear Progress) error {
	cModel, freeModel := owned(model)
	defer freeModel()
	cOut, freeOut := owned(out)
	defer freeOut()
	return making(ctx, hear, func(callback C.dllm_progress_fn, user unsafe.Pointer, cancel *C.dllm_cancel, err **C.dllm_error) C.dllm_status {
		return C.dllm_quantize(cModel, cOut, C.uint32_t(bits), callback, user, cancel, err)
	})
}

// Memory is what a model needs, in bytes.
type Memory struct {
	Weights, CachePerToken uint64
	// Context is the most tokens that a conversation can have.
	Context uint64
}

// Estimate says what a model folder will need, without opening it.
func Estimate(dir string, precision Precision) (Memory, error) {
	path, free := owned(dir)
	defer free()
	options := C.dllm_model_options{struct_size: C.sizeof_dllm_model_options, precision: C.uint32_t(precision)}
	report := C.dllm_memory_report{struct_size: C.sizeof_dllm_memory_report}
	var err *C.dllm_error
	if err := errorOf(C.dllm_model_estimate(path, &options, &report, &err), err); err != nil {
		return Memory{}, err
	}
	return Memory{uint64(report.weights), uint64(report.cache_per_token), uint64(report.context)}, nil
}
