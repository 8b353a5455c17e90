package hostsock

import "sync"

// Sizes of the buffers that datagrams arrive in.
const (
	smallSize = 2 << 10
	largeSize = 64 << 10
)

// Buf is a pooled buffer with one owner at a time. Release gives it back; it must not be touched afterwards.
type Buf struct {
	B    []byte // owners may write to it, and may reslice it
	home home
}

type home interface{ put(*Buf) }

// Release returns the buffer to where it came from. It may be called from any goroutine, once.
func (b *Buf) Release() {
	b.B = b.B[:cap(b.B)]
	b.home.put(b)
}

// BufPool is a pool of buffers of one size. Unused buffers are left to the garbage collector.
type BufPool struct{ pool sync.Pool }

// NewBufPool returns an empty pool of buffers of size bytes, which is above zero.
func NewBufPool(size int) *BufPool {
	p := &BufPool{}
	p.pool.New = func() any { return &Buf{B: make([]byte, size), home: p} }
	return p
}

// Get returns a buffer with undefined content; the caller owns it.
func (p *BufPool) Get() *Buf { return p.pool.Get().(*Buf) }

func (p *BufPool) put(b *Buf) { p.pool.Put(b) }
