package netcheck

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"time"

	pion "github.com/pion/stun/v3"
)

// asker is the socket that asks the server to answer to the mappings of others.
type asker struct {
	*socket
	server netip.AddrPort

	mu  sync.Mutex // guards the following
	ids map[[idLen]byte]struct{}
}

const (
	idLen     = 12
	headerLen = 20
)

var errOtherAddress = errors.New("the NAT gives sockets of this host different outer addresses, so that this test does not work")

func (r *run) openAsker(v6 bool, server netip.AddrPort) (*asker, error) {
	a := &asker{server: server, ids: map[[idLen]byte]struct{}{}}
	var err error
	a.socket, err = r.open(v6)
	return a, err
}

// reaches asks until an answer has arrived at a mapping, which its owner tells by the channel; false if none does.
func (a *asker) reaches(ctx context.Context, mapped netip.AddrPort, arrived <-chan struct{}) (bool, error) {
	self, err := a.client.Bind(ctx, a.server) // opens the way for errors too, and is what the address is compared with
	if err != nil {
		return false, err
	}
	if self.Mapped.Addr() != mapped.Addr() {
		return false, errOtherAddress
	}
	timer := time.NewTimer(lifetimeWait)
	defer timer.Stop()
	for range lifetimeAsks {
		if err := a.send(a.request(mapped.Port()), a.server); err != nil {
			return false, err
		}
		select {
		case <-arrived:
			return true, nil
		case <-timer.C:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		timer.Reset(lifetimeWait)
	}
	return false, nil
}

// request is a Binding request whose answer is to go to another port of the same address (RFC 5780 section 7.5).
func (a *asker) request(port uint16) []byte {
	var id [idLen]byte
	rand.Read(id[:]) // never fails
	a.mu.Lock()
	a.ids[id] = struct{}{}
	a.mu.Unlock()
	m := pion.Message{TransactionID: id, Type: pion.BindingRequest}
	m.WriteHeader()
	m.Add(pion.AttrResponsePort, append(binary.BigEndian.AppendUint16(nil, port), 0, 0))
	return m.Raw
}

// asked reports whether a STUN message is a success response to one of the requests.
func (a *asker) asked(msg []byte) bool {
	if len(msg) < headerLen || binary.BigEndian.Uint16(msg) != pion.BindingSuccess.Value() {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.ids[[idLen]byte(msg[headerLen-idLen:])]
	return ok
}
