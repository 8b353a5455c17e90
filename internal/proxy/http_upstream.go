package proxy

import (
	"bufio"
	"context"
	"net"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/stream"
)

const (
	maxParked  = 4                // connections to servers that wait for a client's next request
	parkedTime = 60 * time.Second // how long they may
	probeTime  = time.Millisecond // to see that a server has closed one
)

// upstreamKey is what a connection may be used again for. A pool belongs to one client's connection, so that no answer can ever
// reach another client, but user and exit may change with each request.
type upstreamKey struct {
	user, exit string
	target     Target
}

func keyOf(r *Request) upstreamKey { return upstreamKey{r.User, r.Exit, r.Target} }

// httpUpstream is a connection to a server.
type httpUpstream struct {
	c      net.Conn
	br     *bufio.Reader // nil while parked
	key    upstreamKey
	idle   time.Duration // for each read and write
	parked time.Time
	reused bool

	// doubtful: the last answer had no body. Some servers send one even so, which must not be taken for the next answer.
	doubtful bool

	moved atomic.Int64 // bytes written
}

func (u *httpUpstream) Read(p []byte) (int, error) {
	u.c.SetReadDeadline(time.Now().Add(u.idle)) // if it fails, reading does
	return u.c.Read(p)
}

func (u *httpUpstream) Write(p []byte) (int, error) {
	u.c.SetWriteDeadline(time.Now().Add(u.idle))
	n, err := u.c.Write(p)
	u.moved.Add(int64(n))
	return n, err
}

func (u *httpUpstream) open() {
	u.br = httpReaders.Get().(*bufio.Reader)
	u.br.Reset(u)
}

// giveReader gives the buffer back; what is in it is lost.
func (u *httpUpstream) giveReader() {
	if u.br != nil {
		u.br.Reset(nil)
		httpReaders.Put(u.br)
		u.br = nil
	}
}

// close ends the connection. The buffer is given back too, so that nobody may read any more.
func (u *httpUpstream) close() {
	u.c.Close()
	u.giveReader()
}

// alive reports whether a parked connection is open still and silent.
func (u *httpUpstream) alive() bool {
	idle := u.idle
	u.idle = probeTime
	_, err := u.br.Peek(1)
	u.idle = idle
	return isTimeout(err)
}

// fit reports whether a parked connection can be used for a request. One to be repeated should the server have closed it meanwhile
// is sent without asking where asking takes time.
func (u *httpUpstream) fit(repeatable bool) bool {
	if readable, known := stream.Readable(u.c); known {
		return !readable // what there is to read would be an end, or an answer to nothing
	}
	return repeatable && !u.doubtful || u.alive()
}

// httpPool has a client's connections that wait, the oldest first.
type httpPool struct{ parked []*httpUpstream }

// take returns a connection for that key, nil if there is none.
func (p *httpPool) take(key upstreamKey) *httpUpstream {
	for i := len(p.parked) - 1; i >= 0; i-- {
		u := p.parked[i]
		if u.key != key {
			continue
		}
		p.parked = append(p.parked[:i], p.parked[i+1:]...)
		if time.Since(u.parked) > parkedTime {
			u.close()
			continue
		}
		u.reused = true
		u.open()
		return u
	}
	return nil
}

// put parks a connection on which nothing is under way.
func (p *httpPool) put(u *httpUpstream) {
	if u.br.Buffered() > 0 { // an answer to nothing
		u.close()
		return
	}
	u.giveReader()
	u.parked = time.Now()
	if len(p.parked) == maxParked {
		p.parked[0].close()
		p.parked = append(p.parked[:0], p.parked[1:]...)
	}
	p.parked = append(p.parked, u)
}

func (p *httpPool) close() {
	for _, u := range p.parked {
		u.close()
	}
	p.parked = nil
}

// reach returns a connection to the server, perhaps one that waited. fresh: none that waited.
func (x *httpConn) reach(ctx context.Context, r *Request, repeatable, fresh bool) (*httpUpstream, error) {
	for !fresh {
		u := x.pool.take(keyOf(r))
		if u == nil {
			break
		}
		if u.fit(repeatable) {
			return u, nil
		}
		u.close()
	}
	c, err := x.s.dial(ctx, r)
	if err != nil {
		return nil, err
	}
	u := &httpUpstream{c: c, key: keyOf(r), idle: x.s.idle()}
	u.open()
	return u, nil
}
