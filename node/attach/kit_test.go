package attach

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/internal/wguapi"
)

func newKey(t *testing.T) wgkey.Private {
	t.Helper()
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// fakeDevice is a WireGuard device without a network.
type fakeDevice struct {
	mu    sync.Mutex // guards the following
	d     wguapi.Device
	fault error
	sets  int // changes that were made
}

func (f *fakeDevice) Get(context.Context) (wguapi.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.d
	d.Peers = slices.Clone(d.Peers)
	return d, f.fault
}

func (f *fakeDevice) Set(_ context.Context, changes ...wguapi.PeerChange) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != nil {
		return f.fault
	}
	for _, c := range changes {
		f.sets++
		i := slices.IndexFunc(f.d.Peers, func(p wguapi.Peer) bool { return p.PublicKey == c.PublicKey })
		switch {
		case c.Remove:
			f.d.Peers = slices.DeleteFunc(f.d.Peers, func(p wguapi.Peer) bool { return p.PublicKey == c.PublicKey })
			continue
		case i < 0 && c.UpdateOnly:
			continue
		case i < 0:
			f.d.Peers = append(f.d.Peers, wguapi.Peer{PublicKey: c.PublicKey})
			i = len(f.d.Peers) - 1
		}
		p := &f.d.Peers[i]
		if c.Endpoint.IsValid() {
			p.Endpoint = c.Endpoint
		}
		if c.SetKeepalive {
			p.Keepalive = c.Keepalive
		}
		p.AllowedIPs = append(p.AllowedIPs, c.AllowedIPs...)
	}
	return nil
}

// edit changes a peer as WireGuard itself, or its operator, would.
func (f *fakeDevice) edit(key wgkey.Public, change func(*wguapi.Peer)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.d.Peers {
		if f.d.Peers[i].PublicKey == key {
			change(&f.d.Peers[i])
		}
	}
}

func (f *fakeDevice) peer(key wgkey.Public) (p wguapi.Peer) {
	f.edit(key, func(q *wguapi.Peer) { p = *q })
	return p
}

var errDevice = errors.New("the device is away")

// fakeRelays takes and brings datagrams by channels.
type fakeRelays struct {
	sent chan sentDatagram
	come chan sentDatagram
	down bool
}

type sentDatagram struct {
	peer wgkey.Public
	text string
}

func newFakeRelays() *fakeRelays {
	return &fakeRelays{sent: make(chan sentDatagram, 64), come: make(chan sentDatagram, 64)}
}

func (f *fakeRelays) Send(to wgkey.Public, datagrams [][]byte) error {
	if f.down {
		return errors.New("no relay is connected")
	}
	for _, d := range datagrams {
		f.sent <- sentDatagram{to, string(d)}
	}
	return nil
}

func (f *fakeRelays) Receive(done <-chan struct{}, bufs [][]byte, sizes []int, from []wgkey.Public) (int, error) {
	select {
	case <-done:
		return 0, errors.New("closed")
	case d := <-f.come:
		sizes[0], from[0] = copy(bufs[0], d.text), d.peer
		return 1, nil
	}
}

func endpoint(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// wait receives with a limit.
func wait[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(5 * time.Second):
		t.Fatalf("timed out waiting for %s", what)
	}
	return v
}
