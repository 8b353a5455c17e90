package config

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
)

// Relay is one relay that the node keeps a connection to.
type Relay struct {
	URL       string   // https://host[:port] or http://host[:port], lower case, the scheme's own port left out
	Pins      []string // "sha256//BASE64" or "sha256-raw:hex" (64 lower-case digits); any of them must match. Empty: the usual verification
	Proxy     string   // "": the environment's; "none"; or the URL of a proxy, which may contain a password
	WebSocket string   // WebSocketAuto, WebSocketYes or WebSocketNo

	// Where the URL stands.
	File string
	Line int
}

// When a relay is spoken to by WebSocket.
const (
	WebSocketAuto = "auto" // where something on the way spoils the plain upgrade
	WebSocketYes  = "yes"
	WebSocketNo   = "no"
)

// maxRelays bounds how many relays a node has: each is connected all the time, and asked for peers that have not been found.
const maxRelays = 16

// ProxyNone as Relay.Proxy is a direct connection, whatever the environment says.
const ProxyNone = "none"

// relayDraft is one [Relay] section: its relays, and what applies to all of them.
type relayDraft struct {
	urls       []relayURL
	pins       []string
	proxy, web string
	file       string
	line       int
	keys       map[string]int
}

type relayURL struct {
	text string
	line int
}

var relayKeys = []key[relayDraft]{
	{name: "URL", doc: "of a relay, such as https://relay.example", list: true, set: func(_ *loader, t *relayDraft, v value) error {
		url, err := parseRelayURL(v.text)
		t.urls = append(t.urls, relayURL{url, v.line})
		return err
	}},
	{name: "Pin", doc: "hash of the relays' certificate, as culvert relay config prints it", list: true,
		set: func(_ *loader, t *relayDraft, v value) error {
			list := splitList(v.text)
			if len(list) == 0 { // a variable that is empty must not turn the check off
				return errors.New("no pin is given; without the key the relay's certificate is verified as any")
			}
			for _, element := range list {
				pin, err := parsePin(element)
				if err != nil {
					return err
				}
				if !slices.Contains(t.pins, pin) {
					t.pins = append(t.pins, pin)
				}
			}
			return nil
		}},
	{name: "Proxy", doc: "URL of a proxy on the way to the relays, or none; default: the usual variables",
		set: func(l *loader, t *relayDraft, v value) (err error) {
			if v.variable != "" || v.literal {
				t.proxy, _, err = parseProxy(v.text, nil)
				return err
			}
			var secret bool
			t.proxy, secret, err = parseProxy(v.text, l.LookupEnv)
			l.literal = l.literal || secret
			return err
		}},
	{name: "ProxyFile", doc: "file that holds the Proxy", slot: "Proxy", set: fromFile(func(_ *loader, t *relayDraft, v value) (err error) {
		t.proxy, _, err = parseProxy(v.text, nil)
		return err
	})},
	{name: "WebSocket", doc: "auto (default), yes or no", set: func(_ *loader, t *relayDraft, v value) error {
		if strings.EqualFold(v.text, WebSocketAuto) {
			t.web = WebSocketAuto
			return nil
		}
		yes, err := parseBool(v.text)
		if err != nil {
			return reject(v.text, "is none of auto, yes and no")
		}
		if t.web = WebSocketNo; yes {
			t.web = WebSocketYes
		}
		return nil
	}},
}

// parsePin reads the hash of a relay's certificate, either of its public key as curl's --pinnedpubkey takes it, or of the whole.
func parsePin(s string) (string, error) {
	const keyPrefix, rawPrefix, size = "sha256//", "sha256-raw:", 32
	if text, ok := strings.CutPrefix(s, keyPrefix); ok {
		if b, err := base64.StdEncoding.Strict().DecodeString(text); err == nil && len(b) == size {
			return s, nil
		}
		return "", reject(s, "is not a pin: behind %s want 32 bytes in base64 (44 characters)", keyPrefix)
	}
	if text, ok := strings.CutPrefix(s, rawPrefix); ok {
		if b, err := hex.DecodeString(text); err == nil && len(b) == size {
			return strings.ToLower(s), nil
		}
		return "", reject(s, "is not a pin: behind %s want 64 hexadecimal digits", rawPrefix)
	}
	return "", reject(s, "is not a pin: want %sBASE64, as culvert relay config prints it, or %sHEX", keyPrefix, rawPrefix)
}

func (l *loader) readRelay(s section) {
	d := &relayDraft{file: l.file, line: s.line, keys: map[string]int{}}
	readSection(l, s, relayKeys, d, d.keys)
	l.relays = append(l.relays, d)
}

// checkRelays finishes the sections: a relay for each URL.
func (l *loader) checkRelays() {
	var lines []int // of l.cfg.Relays
	for _, d := range l.relays {
		if len(d.urls) == 0 {
			l.faultAt(d.file, d.line, "[Relay] needs a URL, such as https://relay.example%s", l.toSet(d.line, "URL"))
		}
		for _, u := range d.urls {
			if u.text == "" { // its line was faulted
				continue
			}
			if i := slices.IndexFunc(l.cfg.Relays, func(r Relay) bool { return r.URL == u.text }); i >= 0 {
				l.faultAt(d.file, u.line, "URL: the relay %s is the same", l.at(lines[i]))
				continue
			}
			if len(l.cfg.Relays) == maxRelays {
				l.faultAt(d.file, u.line, "URL: one relay too many: there may be %d", maxRelays)
				return
			}
			if len(d.pins) > 0 && !strings.HasPrefix(u.text, "https:") {
				l.faultAt(d.file, d.keys["Pin"], "Pin: %s has no certificate: a Pin is for https", u.text)
			}
			l.file = d.file
			file, line := l.standsAt(u.line)
			lines = append(lines, u.line)
			l.cfg.Relays = append(l.cfg.Relays, Relay{
				URL: u.text, Pins: slices.Clone(d.pins), Proxy: d.proxy, WebSocket: cmp.Or(d.web, WebSocketAuto), File: file, Line: line,
			})
		}
	}
}
