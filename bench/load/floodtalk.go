//go:build linux

package load

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"time"
)

// floodMessage is what the ends tell each other, a JSON document each: the client what it wants; the server its port; the
// client that the way is open; the server, if it receives, that it is ready; the sender that it has finished; and the server,
// if it received, what it has.
type floodMessage struct {
	Flood   *Flood       `json:"flood,omitempty"`
	Session string       `json:"session,omitempty"`
	Port    uint16       `json:"port,omitempty"`
	Start   bool         `json:"start,omitempty"`
	Sent    *FloodResult `json:"sent,omitempty"`
	Got     *FloodResult `json:"got,omitempty"`
	Error   string       `json:"error,omitempty"`
}

// floodTalk is the TCP connection of a flood.
type floodTalk struct {
	conn net.Conn
	dec  *json.Decoder
}

// talkLimit bounds every wait for the other end but that for the flood itself.
const talkLimit = 15 * time.Second

func (t floodTalk) say(m floodMessage) error {
	t.conn.SetWriteDeadline(time.Now().Add(talkLimit))
	return json.NewEncoder(t.conn).Encode(m)
}

func (t floodTalk) hear(limit time.Duration) (floodMessage, error) {
	t.conn.SetReadDeadline(time.Now().Add(limit))
	return t.next()
}

// next hears until the deadline that there is.
func (t floodTalk) next() (m floodMessage, err error) {
	if err = t.dec.Decode(&m); err == nil && m.Error != "" {
		err = errors.New(m.Error)
	}
	return m, err
}

// greet opens the way for what the other end sends, and waits until it knows.
func greet(ctx context.Context, socket *datagramSocket, id session) error {
	const attempts = 25
	answer := make([]byte, messageLen)
	for range attempts {
		if _, err := socket.conn.Write(id.hello()); err != nil && !passing(err) {
			return err
		}
		socket.conn.SetReadDeadline(time.Now().Add(talkLimit / attempts))
		n, err := socket.conn.Read(answer)
		if err == nil && id.isHello(answer[:n]) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return errors.New("no UDP datagram comes through: nothing answers")
}

func (s session) hello() []byte {
	b := s.datagram(FloodMinSize)
	binary.BigEndian.PutUint64(b[numberAt:], hello)
	return b
}

func (s session) isHello(b []byte) bool { return string(b) == string(s.hello()) }
