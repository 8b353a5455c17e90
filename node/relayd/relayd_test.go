package relayd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay"
	"culvert.dev/culvert/traversal/relay/derp"
)

// quiet is a relay on loopback, with ports of the system's choice and without the servers that a test does not need.
const quiet = "[Relay]\nName = test\nListen = 127.0.0.1:0\n[STUN]\nListen = off\n[WGSTUN]\nListen = off\n"

const patience = 20 * time.Second // for what takes milliseconds on an idle machine

// setUp writes a configuration and returns how to run it.
func setUp(t *testing.T, conf string) Config {
	t.Helper()
	dir := t.TempDir()
	c := Config{File: filepath.Join(dir, "relay.conf"), State: filepath.Join(dir, "state"), Version: "v0", Logger: testLog(t), Poll: 5 * time.Millisecond}
	write(t, c.File, conf)
	return c
}

func start(t *testing.T, c Config) *Relay {
	t.Helper()
	r, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// testLog shows what is logged when the test fails.
func testLog(t *testing.T) *slog.Logger {
	var b lines
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", b.String())
		}
	})
	return slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *lines) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func newKey(t *testing.T) wgkey.Private {
	t.Helper()
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// server is the relay as a client's configuration has it.
func server(t *testing.T, r *Relay) relay.Server {
	t.Helper()
	o := r.Offer()
	s := relay.Server{URL: o.URL, Proxy: "none"}
	if o.Pin != "" {
		pin, err := relay.ParsePin(o.Pin)
		if err != nil {
			t.Fatal(err)
		}
		s.Pins = []relay.Pin{pin}
	}
	return s
}

// client is a connection whose messages are read as they come.
type client struct {
	*relay.Conn
	messages chan relay.Message // closed when the connection is over; packets are copies
}

// dial connects, and returns when the relay counts the client.
func dial(t *testing.T, key wgkey.Private, r *Relay) client {
	t.Helper()
	conn, err := (&relay.Dialer{Key: key}).Dial(t.Context(), server(t, r))
	if err != nil {
		t.Fatal(err)
	}
	c := client{conn, make(chan relay.Message, 64)}
	go func() {
		defer close(c.messages)
		for {
			m, err := conn.Recv()
			if err != nil {
				return
			}
			m.Packet = bytes.Clone(m.Packet)
			c.messages <- m
		}
	}()
	t.Cleanup(func() { c.Close(); c.ended(t) })
	eventually(t, "the client at the relay", func() bool {
		return slices.ContainsFunc(r.Status().Clients, func(s ClientStatus) bool { return s.Key == key.Public() })
	})
	return c
}

// ended waits for the end of the connection.
func (c client) ended(t *testing.T) {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case _, more := <-c.messages:
			if !more {
				return
			}
		case <-timeout:
			t.Fatal("the connection goes on")
		}
	}
}

// next waits for a message of a kind.
func (c client) next(t *testing.T, kind relay.MessageKind) relay.Message {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case m, more := <-c.messages:
			if !more {
				t.Fatal("the connection has ended")
			}
			if m.Kind == kind {
				return m
			}
		case <-timeout:
			t.Fatal("no such message")
		}
	}
}

func allow(t *testing.T, c Config, keys ...wgkey.Private) {
	t.Helper()
	for i, k := range keys {
		if _, err := config.AddAllowed(filepath.Join(c.State, "allowed.keys"), k.Public(), fmt.Sprint("node", i)); err != nil {
			t.Fatal(err)
		}
	}
}

// passes sends from one client to the other and waits for it.
func passes(t *testing.T, from, to client, target wgkey.Public) {
	t.Helper()
	if err := from.Send(target, [][]byte{[]byte("hello")}); err != nil {
		t.Fatal(err)
	}
	if m := to.next(t, relay.MessagePacket); string(m.Packet) != "hello" {
		t.Errorf("got %q", m.Packet)
	}
}

func TestFirstRunNeedsNoConfiguration(t *testing.T) {
	state := filepath.Join(t.TempDir(), "a", "state")
	file := filepath.Join(t.TempDir(), "relay.conf") // keeps to itself: the well-known ports may be in use
	write(t, file, "[STUN]\nListen = off\n[WGSTUN]\nListen = off\n")
	c := Config{File: file, State: state, Listen: listenAddrs(t, "127.0.0.1:0"), Logger: testLog(t)}
	r := start(t, c)
	for _, file := range []string{"relay.key", selfKeyFile, selfCertFile} {
		info, err := os.Stat(filepath.Join(state, file))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	o := r.Offer()
	if !o.Guessed || !strings.HasPrefix(o.URL, "https://127.0.0.1:") || !strings.HasPrefix(o.Pin, "sha256//") {
		t.Errorf("offer: %+v", o)
	}
	if keys, open := r.Allowed(); keys != 0 || open {
		t.Errorf("admits %d keys, open %v", keys, open)
	}
	if _, err := (&relay.Dialer{Key: newKey(t)}).Dial(t.Context(), server(t, r)); err == nil {
		t.Error("a stranger was admitted")
	}
	eventually(t, "the refusal counted", func() bool { return r.Status().Refused["not-allowed"] == 1 })
	pin, id := o.Pin, r.Status().PublicKey
	r.Close()
	if r = start(t, c); r.Offer().Pin != pin || r.Status().PublicKey != id {
		t.Error("the second run has other keys")
	}
}

func TestClientsTalkThroughTheRelay(t *testing.T) {
	c := setUp(t, quiet)
	a, b := newKey(t), newKey(t)
	allow(t, c, a, b)
	r := start(t, c)
	ca, cb := dial(t, a, r), dial(t, b, r)
	passes(t, ca, cb, b.Public())
	passes(t, cb, ca, a.Public())

	eventually(t, "both packets counted", func() bool { return r.Status().Traffic.RxPackets == 2 })
	st := r.Status()
	if len(st.Clients) != 2 || st.Clients[0].Name == "" || st.Traffic.RxPackets != 2 {
		t.Errorf("status: %+v", st)
	}
	var again Status
	text, err := json.Marshal(st)
	if err == nil {
		err = json.Unmarshal(text, &again)
	}
	if err != nil || again.Clients[1].Key != st.Clients[1].Key || again.Offer.URL != st.Offer.URL {
		t.Errorf("through JSON: %v\n%s", err, text)
	}
}

func TestTheChainEndsInTheMetacert(t *testing.T) {
	r := start(t, setUp(t, quiet))
	c, err := tls.Dial("tcp", r.addresses()[0].String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p := c.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
		t.Errorf("%s was negotiated, which cannot be upgraded", p)
	}
	key, version, ok := derp.MetaKey(c.ConnectionState().PeerCertificates)
	if !ok || version != derp.Version || key != r.Status().PublicKey {
		t.Errorf("got %v, %d, %v", key, version, ok)
	}
}

func TestChangeOfTheAllowFileDropsAClient(t *testing.T) {
	c := setUp(t, quiet)
	a, b := newKey(t), newKey(t)
	allow(t, c, a, b)
	r := start(t, c)
	ca, cb := dial(t, a, r), dial(t, b, r)
	passes(t, ca, cb, b.Public())

	file := filepath.Join(c.State, "allowed.keys")
	if _, err := config.RemoveAllowed(file, b.Public()); err != nil {
		t.Fatal(err)
	}
	cb.ended(t)
	if keys, _ := r.Allowed(); keys != 1 {
		t.Errorf("%d keys", keys)
	}
	if _, err := ca.Ping(t.Context()); err != nil {
		t.Errorf("the other client: %v", err)
	}

	// A line that is none changes nothing: nobody is admitted by mistake, and nobody thrown out.
	write(t, file, a.Public().String()+"\nnonsense\n"+b.Public().String()+"\n")
	if err := r.Reload(); err == nil || !strings.Contains(err.Error(), file+":2: ") {
		t.Errorf("reload: %v", err)
	}
	if _, err := ca.Ping(t.Context()); err != nil {
		t.Errorf("after a file with an error: %v", err)
	}
	if _, err := (&relay.Dialer{Key: b}).Dial(t.Context(), server(t, r)); err == nil {
		t.Error("a client was admitted by a file with an error")
	}

	// Without the file nobody is allowed.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	ca.ended(t)
}

func TestOpenRelayAdmitsEveryoneWithinARate(t *testing.T) {
	c := setUp(t, quiet)
	c.Open = true
	r := start(t, c)
	dial(t, newKey(t), r)
	if st := r.Status(); !st.Open || st.Limits.RateBits != int64(config.DefaultOpenRate) {
		t.Errorf("status: %+v", st)
	}
	if err := r.Reload(); err != nil || !r.Status().Open {
		t.Errorf("--open is forgotten by a reload: %v", err)
	}
}

func TestReloadRefusesWhatNeedsARestart(t *testing.T) {
	c := setUp(t, quiet)
	r := start(t, c)
	for what, conf := range map[string]string{
		"[Relay] Name":   strings.Replace(quiet, "= test", "= other", 1),
		"[Relay] Listen": strings.Replace(quiet, "127.0.0.1:0", "127.0.0.2:0", 1),
		"[STUN] Listen":  strings.Replace(quiet, "[STUN]\nListen = off", "[STUN]\nListen = :0", 1),
		"[Control]":      quiet + "[Control]\nHTTP = 127.0.0.1:1\n",
	} {
		write(t, c.File, conf)
		if err := r.Reload(); err == nil || !strings.HasPrefix(err.Error(), what) || !strings.Contains(err.Error(), " has changed: that needs a restart, nothing was applied") {
			t.Errorf("%s: %v", what, err)
		}
	}
	write(t, c.File, quiet+"[Relay]\nNonsense = 1\n")
	var faults config.Errors
	if err := r.Reload(); !errors.As(err, &faults) {
		t.Errorf("a configuration with an error: %v", err)
	}
	key := newKey(t)
	write(t, c.File, quiet+"[Relay]\nAllow = "+key.Public().String()+" laptop\n")
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	dial(t, key, r)
}

func TestTwoRelaysDoNotShareAStateFolder(t *testing.T) {
	c := setUp(t, quiet)
	r := start(t, c)
	began := time.Now()
	_, err := Start(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another relay (pid %d) runs with the state folder %s", os.Getpid(), c.State)) {
		t.Fatalf("got %v", err)
	}
	if d := time.Since(began); d < lockWait {
		t.Errorf("gave up after %v: one that is about to drain is not waited for", d)
	}
	r.Close()
	start(t, c)
}

func TestPortInUseIsTold(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := setUp(t, strings.Replace(quiet, "127.0.0.1:0", l.Addr().String(), 1))
	if _, err := Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), "another program uses this address and port") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(c.State, lockFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lock is left: %v", err)
	}
}

// A drained relay lets a new one start on the same port while clients are still connected, and they come back to that.
func TestASuccessorStartsBesideADrainingRelay(t *testing.T) {
	port := freePort(t)
	c := setUp(t, strings.Replace(quiet, ":0", ":"+port, 1))
	c.Socket = filepath.Join(t.TempDir(), "relay.sock")
	key := newKey(t)
	allow(t, c, key)
	old := start(t, c)
	conn := dial(t, key, old)

	drained := make(chan struct{})
	go func() { defer close(drained); old.Drain(t.Context()) }()
	conn.next(t, relay.MessageRestarting)
	next := start(t, c) // while the client is connected to the old one
	if old.Health() == nil || next.Health() != nil {
		t.Errorf("health: old %v, next %v", old.Health(), next.Health())
	}
	select {
	case <-drained:
		t.Error("the old relay did not wait for its client")
	default:
	}
	again := dial(t, key, next)
	conn.Close()
	<-drained
	<-old.Done()
	if _, err := again.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if st := next.Status(); len(st.Clients) != 1 {
		t.Errorf("clients of the new relay: %+v", st.Clients)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	return strconv.Itoa(testnet.FreePort())
}

func TestDrainEndsAtOnceWhenTold(t *testing.T) {
	c := setUp(t, quiet)
	key := newKey(t)
	allow(t, c, key)
	r := start(t, c)
	conn := dial(t, key, r)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	began := time.Now()
	go func() { done <- r.Drain(ctx) }()
	conn.next(t, relay.MessageRestarting)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(began); d >= drainTime {
		t.Errorf("took %v", d)
	}
	<-r.Done()
}

func TestPlainHTTPBehindAProxy(t *testing.T) {
	c := setUp(t, strings.Replace(quiet, "[STUN]", "TLS = off\nTrustProxy = 127.0.0.0/8\n[STUN]", 1))
	key := newKey(t)
	allow(t, c, key)
	r := start(t, c)
	o := r.Offer()
	if !strings.HasPrefix(o.URL, "http://") || o.Pin != "" {
		t.Errorf("offer: %+v", o)
	}
	dial(t, key, r)
	if st := r.Status(); st.Certificate.Source != "off" || len(st.Clients) != 1 {
		t.Errorf("status: %+v", st)
	}
}

func TestListenHTTPServesLittle(t *testing.T) {
	port := freePort(t)
	r := start(t, setUp(t, strings.Replace(quiet, "[STUN]", "ListenHTTP = 127.0.0.1:"+port+"\n[STUN]", 1)))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, code := range map[string]int{"/generate_204": 204, "/": 404, "/derp": 404} {
		resp, err := client.Get("http://127.0.0.1:" + port + path)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		if resp.Body.Close(); resp.StatusCode != code {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	r.Close()
}

// leafOf connects and returns the certificate that is shown.
func leafOf(t *testing.T, r *Relay) *x509.Certificate {
	t.Helper()
	c, err := tls.Dial("tcp", r.addresses()[0].String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0]
}

// toLoopback has a dialer reach every name at a port of this host.
func toLoopback(port string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:"+port)
	}
}

func listenAddrs(t *testing.T, texts ...string) (list []config.ListenAddr) {
	t.Helper()
	for _, text := range texts {
		a, err := config.ParseListenAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	return list
}

func TestClientsHaveRoomAmongDescriptors(t *testing.T) {
	for _, c := range []struct {
		wanted int
		files  uint64
		want   int
	}{{65536, 1 << 20, 65536}, {65536, 1024, 896}, {100, 1024, 100}, {65536, 256, 192}, {10, 64, 1}, {10, 0, 1}, {65536, 1<<63 - 1, 65536}} {
		if got := clientsFor(c.wanted, c.files); got != c.want {
			t.Errorf("%d of %d files: got %d, want %d", c.wanted, c.files, got, c.want)
		}
	}
}
