package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestAttachTakesItsSectionsFromAnyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "attach.conf")
	text := `[Interface]
PrivateKey = not even read
[Relay]
URL = https://relay.example
[STUN]
Server = relay.example
[WGSTUN]
PublicKey = EEDXQdE1BY8pmNsEqgnieXcZmciKihl88la6Z7zrPh8=
Endpoint = relay.example
[Traversal]
HardNAT = no
Candidate = [2001:db8::7]:51820, 203.0.113.7:51820
Candidate = 203.0.113.7:51820
[Peer]
Whatever = x
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadAttach(file, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Relays) != 1 || c.Relays[0].URL != "https://relay.example" || !reflect.DeepEqual(c.STUN, []string{"relay.example:3478"}) ||
		c.WGSTUN == nil || c.WGSTUN.Endpoint != "relay.example:3479" {
		t.Errorf("got %+v", c)
	}
	if tr := c.Traversal; !tr.Direct || tr.HardNAT || !tr.PortMapping || len(tr.Candidates) != 2 {
		t.Errorf("got %+v", tr)
	}
}

func TestAttachReportsFaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "attach.conf")
	if err := os.WriteFile(file, []byte("[Relay]\nURL = relay.example\n[Traversl]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := LoadAttach(file, Options{})
	var faults Errors
	if !errors.As(err, &faults) || len(faults) != 2 || faults[0].Line != 2 || faults[1].Line != 3 {
		t.Errorf("got %v", err)
	}
}

func TestAttachNeedsNoFile(t *testing.T) {
	c, err := LoadAttach("", Options{})
	if err != nil || !reflect.DeepEqual(c.Traversal, defaultTraversal()) {
		t.Errorf("got %+v, %v", c, err)
	}
}
