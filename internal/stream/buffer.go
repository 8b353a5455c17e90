package stream

import "sync"

// A buffer is taken when bytes are there to be read and given back once they are written.
const (
	bufferLen      = 64 << 10
	smallBufferLen = 4 << 10 // for connections that cannot be asked whether they are readable, to wait with
)

type bufferPool struct{ pool sync.Pool }

func newBufferPool(size int) *bufferPool {
	return &bufferPool{sync.Pool{New: func() any {
		b := make([]byte, size)
		return &b
	}}}
}

func (p *bufferPool) get() *[]byte  { return p.pool.Get().(*[]byte) }
func (p *bufferPool) put(b *[]byte) { p.pool.Put(b) }

// Caches, not state: nothing depends on what is in them.
var (
	buffers      = newBufferPool(bufferLen)
	smallBuffers = newBufferPool(smallBufferLen)
)
