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
	lines bool   // of a list in the environment: only a new line begins another value, as ; may be part of one
	stock bool   // wg-quick's own: # starts a comment even without white space before it
	doc   string // one line, for the list of variables
	set   func(l *loader, t *T, v value) error
}

// A value is the right side of an entry after $VAR has been looked up.
type value struct {
	text     string
	variable string // whose value it is; empty: the file's own text
	line     int
	literal  bool // as entry's
}

var interfaceKeys = []key[Interface]{
	{name: "Name", doc: "the node's name in the mesh, a DNS label; default: from the host name",
		set: func(_ *loader, t *Interface, v value) (err error) {
			t.Name, err = ParseName(v.text)
			return err
		}},
	{name: "PrivateKey", doc: "the node's identity, as culvert genkey makes it", stock: true, set: setPrivateKey},
	{name: "PrivateKeyFile", doc: "file that holds the PrivateKey", slot: "PrivateKey", set: fromFile(setPrivateKey)},
	{name: "Address", doc: "the node's addresses in the mesh, with the lengths of its prefixes", list: true, stock: true,
		set: func(_ *loader, t *Interface, v value) error {
			for _, element := range splitList(v.text) {
				p, err := parseOwnAddress(element)
				if err != nil {
					return err
				}
				t.Addresses = append(t.Addresses, p)
			}
			return nil
		}},
	{name: "ListenPort", doc: "UDP port of WireGuard; default: derived from the key", stock: true,
		set: func(_ *loader, t *Interface, v value) error {
			n, err := parseRange(v.text, "a port", 0, 65535)
			t.ListenPort = uint16(n)
			return err
		}},
	{name: "Endpoint", doc: "HOST[:PORT] at which devices find this node, for the files made for them",
		set: func(_ *loader, t *Interface, v value) (err error) {
			t.Endpoint, err = ParseEndpoint(v.text)
			return err
		}},
	{name: "MTU", doc: "of the tunnel; default 1420", stock: true, set: func(_ *loader, t *Interface, v value) (err error) {
		t.MTU, err = parseRange(v.text, "an MTU", 1280, 65535) // RFC 8200 section 5 asks for 1280
		return err
	}},
	{name: "DNS", doc: "resolvers for names that leave by a peer's default route; search domains are not used", list: true, stock: true,
		set: func(_ *loader, t *Interface, v value) error {
			for _, element := range splitList(v.text) {
				if server, err := parseResolver(element); err == nil {
					t.DNS = append(t.DNS, server)
					continue
				}
				domain, err := parseDomainName(element)
				if err != nil {
					return reject(element, "is neither an IP address nor a search domain")
				}
				t.Search = append(t.Search, domain)
			}
			return nil
		}},
}

var peerKeys = []key[peerDraft]{
	{name: "Name", doc: "a DNS label by which rules, exits and DNS know the peer; default: from the key",
		set: func(_ *loader, t *peerDraft, v value) (err error) {
			t.Name, err = ParseName(v.text)
			return err
		}},
	{name: "PublicKey", doc: "the peer's identity; each peer needs one", stock: true,
		set: func(_ *loader, t *peerDraft, v value) (err error) {
			if t.PublicKey, err = wgkey.ParsePublic(v.text); err == nil && t.PublicKey.IsZero() {
				err = errZeroKey
			}
			return err
		}},
	{name: "PresharedKey", doc: "a secret shared with the peer, as culvert genpsk makes it", stock: true, set: setPresharedKey},
	{name: "PresharedKeyFile", doc: "file that holds the PresharedKey", slot: "PresharedKey", set: fromFile(setPresharedKey)},
	{name: "AllowedIPs", doc: "prefixes behind the peer", list: true, stock: true,
		set: func(_ *loader, t *peerDraft, v value) error {
			list, err := parsePrefixes(v.text)
			for _, p := range list {
				t.claim(p, v.line)
			}
			return err
		}},
	{name: "Endpoint", doc: "HOST:PORT of the peer; default: learnt from it, or found by relays", stock: true,
		set: func(_ *loader, t *peerDraft, v value) (err error) {
			t.Endpoint, err = parseEndpoint(v.text)
			return err
		}},
	{name: "PersistentKeepalive", doc: "seconds between keepalives; default off", stock: true,
		set: func(_ *loader, t *peerDraft, v value) error {
			if strings.EqualFold(v.text, "off") {
				return nil
			}
			n, err := parseRange(v.text, "off or a number of seconds", 0, 65535)
			t.PersistentKeepalive = time.Duration(n) * time.Second
			return err
		}},
	{name: "AllowInbound", doc: "yes: the peer reaches what this node publishes; default no",
		set: func(_ *loader, t *peerDraft, v value) (err error) {
			t.Allow.Inbound, err = parseBool(v.text)
			return err
		}},
	{name: "AllowRouting", doc: "yes: the peer reaches the internet through this host, and its DNS and SOCKS5; default no",
		set: func(_ *loader, t *peerDraft, v value) (err error) {
			t.Allow.Routing, err = parseBool(v.text)
			return err
		}},
	{name: "AllowLAN", doc: "yes: with AllowRouting the peer reaches this host's local networks too; default no",
		set: func(_ *loader, t *peerDraft, v value) (err error) {
			t.Allow.LAN, err = parseBool(v.text)
			return err
		}},
	{name: "AllowPeers", doc: "names of peers that the peer may reach through this node", list: true,
		set: func(_ *loader, t *peerDraft, v value) error {
			for _, element := range splitList(v.text) {
				name, err := ParseName(element)
				if err != nil {
					return err
				}
				t.AllowPeers = append(t.AllowPeers, name)
			}
			return nil
		}},
	{name: "Rate", doc: "limit in each direction, such as 50Mbit; default none",
		set: func(_ *loader, t *peerDraft, v value) (err error) {
			t.Rate, err = ParseRate(v.text)
			return err
		}},
	{name: "MaxFlows", doc: "how many flows the peer may have open; default: the node's own limit",
		set: func(_ *loader, t *peerDraft, v value) (err error) {
			t.MaxFlows, err = parseRange(v.text, "a number of flows", 1, 1<<20)
			return err
		}},
}

var exitKeys = []key[Exit]{
	{name: "DenyTo", doc: "prefixes that no peer may reach, besides those built in", list: true,
		set: func(_ *loader, t *Exit, v value) error {
			list, err := parsePrefixes(v.text)
			t.DenyTo = append(t.DenyTo, list...)
			return err
		}},
	{name: "AllowTo", doc: "prefixes that peers may reach although they are denied by what is built in", list: true,
		set: func(_ *loader, t *Exit, v value) error {
			list, err := parsePrefixes(v.text)
			t.AllowTo = append(t.AllowTo, list...)
			return err
		}},
	{name: "Mapping", doc: "of UDP, by RFC 4787; default endpoint-independent", set: func(_ *loader, t *Exit, v value) (err error) {
		t.Mapping, err = parseDependence(v.text)
		return err
	}},
	{name: "Filtering", doc: "of UDP, by RFC 4787; default address-dependent", set: func(_ *loader, t *Exit, v value) (err error) {
		t.Filtering, err = parseDependence(v.text)
		return err
	}},
	{name: "DNS", doc: "resolver behind the mesh addresses: system (default), off, or addresses",
		set: func(_ *loader, t *Exit, v value) error {
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
	{name: "DNSRoute", list: true, doc: "DOMAIN to SERVER[:PORT], …: resolvers for a domain and all below it", set: addDNSRoute},
	{name: "SOCKS5", doc: "no: do not serve SOCKS5 at port 1080 of the mesh addresses; default yes",
		set: func(_ *loader, t *Exit, v value) error {
			yes, err := parseBool(v.text)
			t.SOCKS5 = yes || err != nil
			return err
		}},
}

var controlKeys = []key[Control]{
	{name: "Socket", doc: "path of the control socket; default: in the runtime or state folder",
		set: func(l *loader, t *Control, v value) error {
			if t.Socket = v.text; t.Socket != "" && !filepath.IsAbs(t.Socket) {
				t.Socket = filepath.Join(filepath.Dir(l.file), t.Socket)
			}
			return nil
		}},
	{name: "HTTP", doc: "ADDRESS:PORT of metrics and health checks; default none",
		set: func(l *loader, t *Control, v value) (err error) {
			if t.HTTP, err = parseListen(v.text); err == nil && !t.HTTP.Addr().IsLoopback() {
				l.warn(v.line, "HTTP listens beyond this host: whoever reaches it reads the peers' names and traffic figures")
			}
			return err
		}},
	{name: "FlowLog", doc: "file that flows are logged to, - for standard error; default none",
		set: func(l *loader, t *Control, v value) error {
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
