package main

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/node/relayd"
	"culvert.dev/culvert/traversal/relay"
)

// A client that does not leave keeps a draining relay up for seconds, unless it is told a second time.
func TestSecondSignalEndsTheRelayAtOnce(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "relay.conf")
	if err := os.WriteFile(file, []byte("[STUN]\nListen = off\n[WGSTUN]\nListen = off\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	listen, err := config.ParseListenAddr("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := relayd.Start(t.Context(), relayd.Config{File: file, State: filepath.Join(dir, "state"), Listen: []config.ListenAddr{listen}, Open: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pin, err := relay.ParsePin(r.Offer().Pin)
	if err != nil {
		t.Fatal(err)
	}
	key, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	client, err := (&relay.Dialer{Key: key}).Dial(t.Context(), relay.Server{URL: r.Offer().URL, Pins: []relay.Pin{pin}, Proxy: "none"})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for len(r.Status().Clients) == 0 {
		time.Sleep(time.Millisecond)
	}

	signals := make(chan os.Signal)
	ended := make(chan error)
	c := cli.NewContext(newApp(), nil, nil)
	c.Context = context.Background()
	go func() { ended <- attendRelay(c, r, signals, func() {}) }()
	signals <- syscall.SIGHUP // is no end
	signals <- syscall.SIGTERM
	for {
		if m, err := client.Recv(); err != nil {
			t.Fatal(err)
		} else if m.Kind == relay.MessageRestarting {
			break
		}
	}
	began := time.Now()
	signals <- syscall.SIGTERM
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
}
