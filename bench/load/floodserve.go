//go:build linux

package load

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// drain is how long a receiver takes in what queues still hold after the sender has finished.
const drain = 5 * time.Second

// serveFlood is the other end, on a connection that has named the service.
func serveFlood(ctx context.Context, conn net.Conn) error {
	talk := floodTalk{conn, json.NewDecoder(conn)}
	err := answerFlood(ctx, talk)
	if err != nil {
		talk.say(floodMessage{Error: err.Error()}) // the client may be gone
	}
	return err
}

func answerFlood(ctx context.Context, talk floodTalk) error {
	m, err := talk.hear(talkLimit)
	if err != nil {
		return err
	}
	var id session
	if b, err := hex.DecodeString(m.Session); err != nil || len(b) != len(id) || copy(id[:], b) != len(id) || m.Flood == nil {
		return errors.New("the client does not say what flood it wants")
	}
	f, err := m.Flood.withDefaults()
	if err != nil {
		return err
	}
	local := unmapped(talk.conn.LocalAddr().(*net.TCPAddr).AddrPort())
	socket, err := openSocket(netip.AddrPortFrom(local.Addr(), 0), netip.AddrPort{})
	if err != nil {
		return err
	}
	defer socket.conn.Close()
	if err := talk.say(floodMessage{Port: socket.addr().Port()}); err != nil {
		return err
	}
	if err := greeted(talk, socket, id); err != nil {
		return err
	}
	if f.Direction == Down {
		return f.serverSends(ctx, talk, socket, id)
	}
	return f.serverReceives(talk, socket, id)
}

// greeted waits until a client has opened the way and has said that it begins. It does not wait for one that has gone.
func greeted(talk floodTalk, socket *datagramSocket, id session) error {
	limit := time.Now().Add(2 * talkLimit)
	talk.conn.SetReadDeadline(limit)
	socket.conn.SetReadDeadline(limit)
	begun := make(chan error)
	go func() {
		m, err := talk.next()
		if err == nil && !m.Start {
			err = errors.New("the client does not begin")
		}
		socket.conn.SetReadDeadline(time.Now()) // nobody greets any more
		begun <- err
	}()
	err := socket.answer(id)
	if err != nil {
		talk.conn.SetReadDeadline(time.Now())
	}
	if begin := <-begun; begin != nil {
		return begin
	}
	return err
}

// answer answers each hello of a client until the socket's deadline. It binds the socket to where the first came from: what
// translators on the way have made of the client's address.
func (s *datagramSocket) answer(id session) error {
	b := make([]byte, messageLen)
	for bound := false; ; {
		n, from, err := s.conn.ReadFromUDPAddrPort(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && bound:
			return nil
		case err != nil && passing(err):
			continue
		case err != nil:
			return fmt.Errorf("wait for the client's first datagram: %w", err)
		case !id.isHello(b[:n]):
			continue
		}
		if !bound {
			if err := s.connect(from); err != nil {
				return err
			}
			bound = true
		}
		if err := s.control(func(fd int) error { return unix.Send(fd, b[:n], 0) }); err != nil && !passing(err) {
			return fmt.Errorf("answer the client's first datagram: %w", err)
		}
	}
}

// serverSends stops early when the client has gone: it says nothing while it receives.
func (f Flood) serverSends(ctx context.Context, talk floodTalk, socket *datagramSocket, id session) error {
	ctx, cancel := context.WithCancel(ctx)
	gone := make(chan struct{})
	talk.conn.SetReadDeadline(time.Now().Add(f.Warmup + f.Length + talkLimit))
	go func() {
		defer close(gone)
		talk.next()
		cancel()
	}()
	s, err := f.send(ctx, socket, id)
	talk.conn.SetReadDeadline(time.Now())
	<-gone
	if err != nil {
		return err
	}
	return talk.say(floodMessage{Sent: f.sent(s)})
}

func (f Flood) serverReceives(talk floodTalk, socket *datagramSocket, id session) error {
	if err := talk.say(floodMessage{Start: true}); err != nil {
		return err
	}
	var failed error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, failed = talk.hear(f.Warmup + f.Length + talkLimit)
	}()
	c := newCounter(f, id)
	err := c.receive(socket, ended, drain)
	if err != nil {
		talk.conn.Close()
	}
	<-ended
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	return talk.say(floodMessage{Got: c.result()})
}
