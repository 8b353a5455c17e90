package config

import (
	"path/filepath"
	"strings"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// A key is one row of a section's table: how "Name = value" changes a T.
type key[T any] struct {
	name  string
	slot  string // keys of one slot exclude each other; empty: the key is alone in its own
	list  bool   // may be repeated, values add up
	stock bool   // wg-quick's own: # starts a comment even without white space before it
	set   func(l *loader, t *T, v value) error
}

// A value is the right side of an entry after $VAR has been looked up.
type value struct {
	text     string
	variable string // whose value it is; empty: the file's own text
	line     int
}

var interfaceKeys = []key[Interface]{
	{name: "Name", set: func(_ *loader, t *Interface, v value) (err error) {
		t.Name, err = ParseName(v.text)
		return err
	}},
	{name: "PrivateKey", stock: true, set: setPrivateKey},
	{name: "PrivateKeyFile", slot: "PrivateKey", set: fromFile(setPrivateKey)},
	{name: "Address", list: true, stock: true, set: func(_ *loader, t *Interface, v value) error {
		for _, element := range splitList(v.text) {
			p, err := parseOwnAddress(element)
			if err != nil {
				return err
			}
			t.Addresses = append(t.Addresses, p)
		}
		return nil
	}},
	{name: "ListenPort", stock: true, set: func(_ *loader, t *Interface, v value) error {
		n, err := parseRange(v.text, "a port", 0, 65535)
		t.ListenPort = uint16(n)
		return err
	}},
	{name: "Endpoint", set: func(_ *loader, t *Interface, v value) (err error) {
		t.Endpoint, err = ParseEndpoint(v.text)
		return err
	}},
	{name: "MTU", stock: true, set: func(_ *loader, t *Interface, v value) (err error) {
		t.MTU, err = parseRange(v.text, "an MTU", 1280, 65535) // RFC 8200 section 5 asks for 1280
		return err
	}},
	{name: "DNS", list: true, stock: true, set: func(_ *loader, t *Interface, v value) error {
		t.DNS = append(t.DNS, splitList(v.text)...)
		return nil
	}},
}

var peerKeys = []key[peerDraft]{
	{name: "Name", set: func(_ *loader, t *peerDraft, v value) (err error) {
		t.Name, err = ParseName(v.text)
		return err
	}},
	{name: "PublicKey", stock: true, set: func(_ *loader, t *peerDraft, v value) (err error) {
		if t.PublicKey, err = wgkey.ParsePublic(v.text); err == nil && t.PublicKey.IsZero() {
			err = errZeroKey
		}
		return err
	}},
	{name: "PresharedKey", stock: true, set: setPresharedKey},
	{name: "PresharedKeyFile", slot: "PresharedKey", set: fromFile(setPresharedKey)},
	{name: "AllowedIPs", list: true, stock: true, set: func(_ *loader, t *peerDraft, v value) error {
		list, err := parsePrefixes(v.text)
		for _, p := range list {
			t.claim(p, v.line)
		}
		return err
	}},
	{name: "Endpoint", stock: true, set: func(_ *loader, t *peerDraft, v value) (err error) {
		t.Endpoint, err = parseEndpoint(v.text)
		return err
	}},
	{name: "PersistentKeepalive", stock: true, set: func(_ *loader, t *peerDraft, v value) error {
		if strings.EqualFold(v.text, "off") {
			return nil
		}
		n, err := parseRange(v.text, "off or a number of seconds", 0, 65535)
		t.PersistentKeepalive = time.Duration(n) * time.Second
		return err
	}},
	{name: "AllowInbound", set: func(_ *loader, t *peerDraft, v value) (err error) {
		t.Allow.Inbound, err = parseBool(v.text)
		return err
	}},
	{name: "AllowRouting", set: func(_ *loader, t *peerDraft, v value) (err error) {
		t.Allow.Routing, err = parseBool(v.text)
		return err
	}},
	{name: "AllowLAN", set: func(_ *loader, t *peerDraft, v value) (err error) {
		t.Allow.LAN, err = parseBool(v.text)
		return err
	}},
	{name: "AllowPeers", list: true, set: func(_ *loader, t *peerDraft, v value) error {
		for _, element := range splitList(v.text) {
			name, err := ParseName(element)
			if err != nil {
				return err
			}
			t.AllowPeers = append(t.AllowPeers, name)
		}
		return nil
	}},
	{name: "Rate", set: func(_ *loader, t *peerDraft, v value) (err error) {
		t.Rate, err = ParseRate(v.text)
		return err
	}},
	{name: "MaxFlows", set: func(_ *loader, t *peerDraft, v value) (err error) {
		t.MaxFlows, err = parseRange(v.text, "a number of flows", 1, 1<<20)
		return err
	}},
}

var exitKeys = []key[Exit]{
	{name: "DenyTo", list: true, set: func(_ *loader, t *Exit, v value) error {
		list, err := parsePrefixes(v.text)
		t.DenyTo = append(t.DenyTo, list...)
		return err
	}},
	{name: "AllowTo", list: true, set: func(_ *loader, t *Exit, v value) error {
		list, err := parsePrefixes(v.text)
		t.AllowTo = append(t.AllowTo, list...)
		return err
	}},
	{name: "Mapping", set: func(_ *loader, t *Exit, v value) (err error) {
		t.Mapping, err = parseDependence(v.text)
		return err
	}},
	{name: "Filtering", set: func(_ *loader, t *Exit, v value) (err error) {
		t.Filtering, err = parseDependence(v.text)
		return err
	}},
	{name: "DNS", set: func(_ *loader, t *Exit, v value) error {
		switch strings.ToLower(v.text) {
		case "", "system":
			return nil
		case "off":
			t.DNS.Off = true
			return nil
		}
		for _, element := range splitList(v.text) {
			server, err := parseResolver(element)
			if err != nil {
				return err
			}
			t.DNS.Servers = append(t.DNS.Servers, server)
		}
		return nil
	}},
}

var controlKeys = []key[Control]{
	{name: "Socket", set: func(l *loader, t *Control, v value) error {
		if t.Socket = v.text; t.Socket != "" && !filepath.IsAbs(t.Socket) {
			t.Socket = filepath.Join(filepath.Dir(l.file), t.Socket)
		}
		return nil
	}},
	{name: "HTTP", set: func(l *loader, t *Control, v value) (err error) {
		if t.HTTP, err = parseListen(v.text); err == nil && !t.HTTP.Addr().IsLoopback() {
			l.warn(v.line, "HTTP listens beyond this host: whoever reaches it reads the peers' names and traffic figures")
		}
		return err
	}},
	{name: "FlowLog", set: func(l *loader, t *Control, v value) error {
		if t.FlowLog = v.text; t.FlowLog != "" && t.FlowLog != FlowLogStderr && !filepath.IsAbs(t.FlowLog) {
			t.FlowLog = filepath.Join(filepath.Dir(l.file), t.FlowLog)
		}
		return nil
	}},
}

func setPrivateKey(_ *loader, t *Interface, v value) (err error) {
	if t.PrivateKey, err = wgkey.ParsePrivate(v.text); err == nil && t.PrivateKey.IsZero() {
		err = errZeroKey
	}
	return err
}

func setPresharedKey(_ *loader, t *peerDraft, v value) (err error) {
	t.PresharedKey, err = wgkey.ParsePreshared(v.text)
	return err
}

// fromFile makes of a key's setter the one of its KeyFile variant.
func fromFile[T any](set func(*loader, *T, value) error) func(*loader, *T, value) error {
	return func(l *loader, t *T, v value) error {
		text, err := l.secretFile(v.text)
		if err != nil {
			return err
		}
		return set(l, t, value{text: text, line: v.line})
	}
}
