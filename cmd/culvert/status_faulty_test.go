package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/node"
)

// serveFakeAt is serveFake at a place.
func serveFakeAt(t *testing.T, socket, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := control.Serve(l, &fakeNode{status: node.Status{Name: name}}, nil)
	t.Cleanup(func() { s.Shutdown(context.Background()) })
}

// A running node is found though its configuration has a fault by now.
func TestClientCommandsFindTheNodeOfAFaultyConfiguration(t *testing.T) {
	const valid = "[Interface]\nPrivateKey = WNRzWjQ7CEpXoEDFZ3TMaiaqeVbW4GSqXKmy7XGWbmM=\nAddress = 10.0.0.1/24\n"
	for _, tt := range []struct {
		name, text string
		nodes      []string // sockets below the folder
		want       string   // on stdout: the socket's node; "": an error
		warning    string
	}{
		{"by the socket", valid + "MTU = 1\n[Control]\nSocket = c.sock\n", []string{"c.sock", "run/culvert/other.sock"}, "c.sock", ""},
		{"by the name", valid + "Name = one\nMTU = 1\n", []string{"run/culvert/one.sock", "run/culvert/two.sock"}, "run/culvert/one.sock", ""},
		{"the only one", valid + "[Contrl]\nSocket = c.sock\n", []string{"run/culvert/two.sock"}, "run/culvert/two.sock", "has faults, so that its node is a guess: the one at "},
		{"in the state folder", valid + "Name = a b\n", []string{"state/control.sock"}, "state/control.sock", "is a guess"},
		{"no valid line at all", "\x00", []string{"state/control.sock"}, "state/control.sock", "is a guess"},
		{"none runs", valid + "MTU = 1\n", nil, "", `n.conf:4: MTU: "1" is not an MTU (1280 to 65535)`},
		{"several, and none by the name", valid + "MTU = 1\nName = one\n", []string{"run/culvert/two.sock", "state/control.sock"}, "", "n.conf:4: MTU"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "faulty") // short enough for sockets
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			t.Setenv("XDG_RUNTIME_DIR", filepath.Join(dir, "run"))
			t.Setenv("CULVERT_STATE", filepath.Join(dir, "state"))
			file := filepath.Join(dir, "n.conf")
			if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, socket := range tt.nodes {
				serveFakeAt(t, filepath.Join(dir, socket), socket)
			}
			code, out, errOut := runLine("status", "-c", file)
			if (code == 0) != (tt.want != "") || !strings.Contains(out, tt.want) || !strings.Contains(errOut, tt.warning) || tt.warning == "" && errOut != "" {
				t.Errorf("got %d\n%s\n%s", code, out, errOut)
			}
			if code, _, errOut := runLine("health", "-c", file); (code == 0) != (tt.want != "") {
				t.Errorf("health: got %d %s", code, errOut)
			}
			t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config")) // the same without -c
			if err := os.MkdirAll(filepath.Join(dir, "config", "culvert"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(file, filepath.Join(dir, "config", "culvert", "culvert.conf")); err != nil {
				t.Fatal(err)
			}
			if tt.name == "by the socket" {
				return // it is relative to the file
			}
			if code, out, errOut := runLine("status"); (code == 0) != (tt.want != "") || !strings.Contains(out, tt.want) {
				t.Errorf("without -c: got %d\n%s\n%s", code, out, errOut)
			}
		})
	}
}
