package relayserver

import (
	"net"
	"time"
)

const (
	// maxBatch is how much the writer takes at a time: enough to make system calls and TLS records cheap, little enough that
	// a handshake that comes now is not far behind.
	maxBatch  = 64 << 10
	maxChunks = 48
	// slowBatch and slowWrite: batches start small, and grow while they do not take long, so that a slow line is not taken for
	// a reader that has stopped.
	slowBatch = 4 << 10
	slowWrite = 500 * time.Millisecond
	// lingerTime is how long an idle writer stays.
	lingerTime = 5 * time.Second
)

// writer is what a client's writing goroutine works with.
type writer struct {
	c      *client
	budget int
	vec    net.Buffers // for writev; consumes slices
	store  [maxChunks]*chunk
	slices [maxChunks][]byte
}

// wake makes the writer look into the outbox. It follows each put that asks for it.
func (c *client) wake() {
	if c.out.begin() {
		w := &writer{c: c, budget: slowBatch}
		c.srv.wg.Go(w.run)
		return
	}
	c.wakeup <- true
}

// run writes what the outbox holds, until the client is closed or housekeeping retires it.
func (w *writer) run() {
	c := w.c
	for {
		now := c.srv.now()
		chunks, quit := c.out.collect(w.store[:0], w.budget, now)
		if quit {
			return
		}
		if len(chunks) == 0 {
			if !<-c.wakeup {
				return
			}
			continue
		}
		c.writing.Store(now)
		err := w.write(chunks)
		done := c.srv.now()
		c.writing.Store(0)
		c.lastWrite.Store(done)
		w.budget = min(2*w.budget, maxBatch)
		if time.Duration(done-now) > slowWrite {
			w.budget = slowBatch
		}
		if err != nil {
			c.kill(endedByWrite)
		}
	}
}

// write writes the chunks in order and gives them back.
func (w *writer) write(chunks []*chunk) error {
	var packets, bytes uint64
	for _, ch := range chunks {
		if !ch.own {
			packets += uint64(ch.frames)
		}
		bytes += uint64(len(ch.left()))
	}
	var err error
	if w.c.tcp != nil {
		err = w.writeVector(chunks)
	} else {
		err = w.writeRecords(chunks)
	}
	for i, ch := range chunks {
		w.c.srv.pool.put(ch)
		chunks[i] = nil
	}
	if err == nil {
		w.c.packetsOut.Add(packets)
		w.c.bytesOut.Add(bytes)
	}
	return err
}

// writeVector is for plain TCP: one writev for all.
func (w *writer) writeVector(chunks []*chunk) error {
	bufs := w.slices[:0]
	for _, ch := range chunks {
		bufs = append(bufs, ch.left())
	}
	w.vec = bufs
	_, err := w.vec.WriteTo(w.c.tcp)
	clear(w.slices[:len(chunks)])
	return err
}

// writeRecords is for TLS and WebSocket, where each Write becomes records or a message of its own: chunks that are far from full
// go together.
func (w *writer) writeRecords(chunks []*chunk) error {
	for len(chunks) > 0 {
		n, size := 0, 0
		for n < len(chunks) && size+len(chunks[n].left()) <= recordSize {
			size += len(chunks[n].left())
			n++
		}
		var err error
		if n <= 1 {
			n = 1
			err = w.writeAlone(chunks[0].left())
		} else {
			err = w.writeGathered(chunks[:n])
		}
		if err != nil {
			return err
		}
		chunks = chunks[n:]
	}
	return nil
}

// writeAlone writes a chunk that fills a record, or is longer. TLS divides it by itself. A WebSocket message is divided here: peers
// limit its length, many of them to 32 KiB, and take it for a stream.
func (w *writer) writeAlone(b []byte) error {
	for w.c.transport == TransportWebSocket && len(b) > recordSize {
		if _, err := w.c.conn.Write(b[:recordSize]); err != nil {
			return err
		}
		b = b[recordSize:]
	}
	_, err := w.c.conn.Write(b)
	return err
}

// writeGathered writes chunks that fit one record.
func (w *writer) writeGathered(chunks []*chunk) error {
	g := w.c.srv.records.Get().(*[recordSize]byte)
	defer w.c.srv.records.Put(g)
	n := 0
	for _, ch := range chunks {
		n += copy(g[n:], ch.left())
	}
	_, err := w.c.conn.Write(g[:n])
	return err
}
