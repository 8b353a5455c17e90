package config

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"
)

// Faults elsewhere do not hide where a node is found.
func TestPlaceOfAConfigurationWithFaults(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		environ    []string
		want       Place // Socket is relative to the file's folder, but for an absolute one
	}{
		{"all is well", "[Interface]\nName = a\nPrivateKey = " + keyText + "\nAddress = 10.0.0.1\n[Control]\nSocket = c.sock\n", nil, Place{"a", "c.sock"}},
		{"faults in other keys", "[Interface]\nName = a\nMTU = 1\n[Peer]\nPublickey = x\n[Control]\nHTTP = x\nSocket = c.sock\n", nil, Place{"a", "c.sock"}},
		{"unknown sections and lines", "[Interfaces]\nnonsense\n[Control]\nSocket = /c.sock\n", nil, Place{"host", "/c.sock"}},
		{"the name itself", "[Interface]\nName = a b\n", nil, Place{"host", ""}},
		{"a key file that is gone", "[Interface]\nName = a\nPrivateKeyFile = nowhere\n", nil, Place{"a", ""}},
		{"a variable on top", "[Control]\nSocket = c.sock\n", []string{"CULVERT_CONTROL_SOCKET=/d.sock", "CULVERT_INTERFACE_NAME=b"}, Place{"b", "/d.sock"}},
	} {
		file := filepath.Join(put(t, map[string]string{"n.conf": tt.text}), "n.conf")
		got, err := LoadPlace(file, Options{Hostname: func() (string, error) { return "host", nil }, Sources: Sources{Environ: tt.environ}})
		if rel, e := filepath.Rel(filepath.Dir(file), got.Socket); e == nil && filepath.Dir(got.Socket) == filepath.Dir(file) {
			got.Socket = rel
		}
		if err != nil || got != tt.want {
			t.Errorf("%s: got %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
	}
	if _, err := LoadPlace(filepath.Join(t.TempDir(), "absent"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: got %v", err)
	}
}

func TestPlaceOfARelayWithFaults(t *testing.T) {
	file := filepath.Join(put(t, map[string]string{"r.conf": "[Relay]\nName = r\nRate = fast\n[Control]\nSocket = /r.sock\n"}), "r.conf")
	got, err := LoadRelayPlace(file, Options{Sources: Sources{Environ: []string{"CULVERT_RELAYD_NAME=s", "CULVERT_RELAYD_LISTN=1"}}})
	if want := (Place{"s", "/r.sock"}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if _, err := LoadRelayPlace(filepath.Join(t.TempDir(), "absent"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: got %v", err)
	}
}
