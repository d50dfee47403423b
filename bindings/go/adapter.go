package dialoguellm

/*
#include <dialoguellm.h>
*/
import "C"

import "runtime"

// Adapter has LoRA tensors; it never changes, and any number of goroutines may use it at once.
type Adapter struct {
	p       *C.dllm_adapter
	cleanup runtime.Cleanup
}

func newAdapter(made *C.dllm_adapter) *Adapter {
	a := &Adapter{p: made}
	a.cleanup = runtime.AddCleanup(a, func(p *C.dllm_adapter) { C.dllm_adapter_free(p) }, made)
	return a
}

// handle is NULL for no adapter.
func (a *Adapter) handle() *C.dllm_adapter {
	if a == nil {
		return nil
	}
	return a.p
}

// OpenAdapter reads an adapter folder as PEFT writes them.
func (m *Model) OpenAdapter(dir string) (*Adapter, error) {
	path, free := owned(dir)
	defer free()
	var made *C.dllm_adapter
	var err *C.dllm_error
	status := C.dllm_adapter_open(m.p, path, &made, &err)
	runtime.KeepAlive(m)
	if err := errorOf(status, err); err != nil {
		return nil, err
	}
	return newAdapter(made), nil
}

// Adapter is the adapter as it is now; the trainer may go on.
func (t *Trainer) Adapter() (*Adapter, error) {
	var made *C.dllm_adapter
	var err *C.dllm_error
	status := C.dllm_trainer_adapter(t.p, &made, &err)
	runtime.KeepAlive(t)
	if err := errorOf(status, err); err != nil {
		return nil, err
	}
	return newAdapter(made), nil
}

// Close frees the adapter; what was made with it keeps its own hold.
func (a *Adapter) Close() {
	if a.p != nil {
		a.cleanup.Stop()
		C.dllm_adapter_free(a.p)
		a.p = nil
	}
}

// Parameters are how many trained values it has.
func (a *Adapter) Parameters() int {
	defer runtime.KeepAlive(a)
	return int(C.dllm_adapter_n_parameters(a.p))
}

// Save writes a folder that PEFT reads; a folder that is there is replaced in one step.
func (a *Adapter) Save(dir string) error {
	return toFolder(a, dir, func(path *C.char, err **C.dllm_error) C.dllm_status { return C.dllm_adapter_save(a.p, path, err) })
}
