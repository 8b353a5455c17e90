package config

import (
	"io/fs"
	"strings"
	"testing"
)

func attachFile(text string) func(string) (*content, error) {
	return func(name string) (*content, error) {
		if name != "attach.conf" {
			return nil, fs.ErrNotExist
		}
		return &content{[]byte(text), 0o600, false}, nil
	}
}

func TestAttachFile(t *testing.T) {
	const text = `[Interface]
PrivateKey = not looked at
[Relay]
URL = https://one.example
[STUN]
Server = one.example
[WGSTUN]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
Endpoint = one.example
[Traversal]
PortMapping = no
[Control]
Socket = /run/x.sock
FlowLog = -
[Peer]
[Peer]
`
	c, err := loadAttach("attach.conf", Options{}, attachFile(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Relays) != 1 || c.Relays[0].URL != "https://one.example" {
		t.Errorf("relays: %+v", c.Relays)
	}
	if got := strings.Join(c.STUN, " "); got != "one.example:3478" {
		t.Errorf("STUN servers: %s", got)
	}
	if c.WGSTUN == nil || c.WGSTUN.Endpoint != "one.example:3479" || len(c.WGSTUN.Addresses) != 2 {
		t.Errorf("WG-STUN: %+v", c.WGSTUN)
	}
	if c.Traversal.PortMapping || !c.Traversal.Direct || c.Control.Socket != "/run/x.sock" {
		t.Errorf("got %+v", c)
	}
	if len(c.Warnings) != 3 || !strings.Contains(c.Warnings[0].String(), "attach.conf:1: [Interface] is not used") || c.Control.FlowLog != "" {
		t.Errorf("warnings: %v", c.Warnings)
	}
}

// The variables are those of a node; with and without a file.
func TestAttachByTheEnvironment(t *testing.T) {
	environ := []string{"CULVERT_RELAY_URL=https://two.example", "CULVERT_STUN_SERVER=two.example", "CULVERT_INTERFACE_NAME=x", "CULVERT_INTERFACE_MTU=1400"}
	for file, relays := range map[string]string{"": "https://two.example", "attach.conf": "https://one.example https://two.example"} {
		c, err := loadAttach(file, Options{Sources: Sources{Environ: environ}}, attachFile("[Relay]\nURL = https://one.example\n[STUN]\nServer = one.example\n"))
		if err != nil {
			t.Fatal(err)
		}
		var urls []string
		for _, r := range c.Relays {
			urls = append(urls, r.URL)
		}
		if got := strings.Join(urls, " "); got != relays || strings.Join(c.STUN, " ") != "two.example:3478" {
			t.Errorf("file %q: relays %s, STUN %v", file, got, c.STUN)
		}
		if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0].String(), "CULVERT_INTERFACE: [Interface] is not used") {
			t.Errorf("file %q: warnings %v", file, c.Warnings)
		}
	}
	_, err := loadAttach("", Options{Sources: Sources{Environ: []string{"CULVERT_RELAY_PIN=x", "CULVERT_RELY_URL=https://two.example"}}}, attachFile(""))
	want := "CULVERT_RELAY: [Relay] needs a URL, such as https://relay.example: set CULVERT_RELAY_URL"
	if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "did you mean CULVERT_RELAY_URL?") {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestAttachFileFaults(t *testing.T) {
	for _, c := range []struct {
		name, text, want string
	}{
		{"relay without URL", "[Relay]\nProxy = none\n", "attach.conf:1: [Relay] needs a URL"},
		{"misspelt section", "[Relais]\n", "did you mean [Relay]?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := loadAttach("attach.conf", Options{}, attachFile(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
