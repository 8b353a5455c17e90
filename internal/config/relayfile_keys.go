package config

import (
	"errors"
	"net/mail"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"culvert.dev/culvert/internal/wgkey"
)

// relayFile is a relay's configuration while it is read.
type relayFile struct {
	server                                        RelayServer
	stun                                          RelaySTUN
	wgstun                                        RelayWGSTUN
	control                                       RelayControl
	serverKeys, stunKeys, wgstunKeys, controlKeys map[string]int // slot to line of the first key

	allowLines, clientLines []int // of server.Allow and wgstun.Clients, index for index

	tlsOff             bool
	stunOff, wgstunOff bool
}

var relayServerKeys = []key[relayFile]{
	{name: "Name", doc: "the relay's name, a DNS label; default: from the host name",
		set: func(_ *loader, t *relayFile, v value) (err error) {
			t.server.Name, err = ParseName(v.text)
			return err
		}},
	{name: "Listen", list: true, doc: "ADDRESS:PORT or :PORT of the relay; default :443, or :8443 where that is refused",
		set: func(_ *loader, t *relayFile, v value) (err error) {
			t.server.Listen, err = appendListen(t.server.Listen, v.text)
			return err
		}},
	{name: "PrivateKey", doc: "the relay's identity; default: in the state folder, made on the first run",
		set: func(_ *loader, t *relayFile, v value) (err error) { return t.server.Key.set(v.text) }},
	{name: "PrivateKeyFile", slot: "PrivateKey", doc: "file that holds the PrivateKey",
		set: fromFile(func(_ *loader, t *relayFile, v value) error {
			return t.server.Key.set(v.text)
		})},
	{name: "URL", doc: "what nodes are told; default: of the Domain, else a guess",
		set: func(_ *loader, t *relayFile, v value) (err error) {
			t.server.URL, err = parseRelayURL(v.text)
			return err
		}},
	{name: "Certificate", doc: "PEM file of the certificate",
		set: func(l *loader, t *relayFile, v value) error { return l.setFile(&t.server.Certificate, v.text) }},
	{name: "CertificateKey", doc: "PEM file of its key",
		set: func(l *loader, t *relayFile, v value) error { return l.setFile(&t.server.CertificateKey, v.text) }},
	{name: "Domain", list: true, doc: "names that a certificate is had for by ACME",
		set: func(_ *loader, t *relayFile, v value) error {
			list := splitList(v.text)
			if len(list) == 0 {
				return errors.New("no name is given")
			}
			for _, element := range list {
				domain, err := parseDomain(element)
				if err != nil {
					return err
				}
				if !slices.Contains(t.server.Domains, domain) {
					t.server.Domains = append(t.server.Domains, domain)
				}
			}
			return nil
		}},
	{name: "ACMEDirectory", doc: "URL of the ACME server; default: that of Let's Encrypt",
		set: func(_ *loader, t *relayFile, v value) error {
			u, err := url.Parse(v.text)
			if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
				return errors.New("not the URL of an ACME directory: want https://HOST/PATH")
			}
			t.server.ACMEDirectory = v.text
			return nil
		}},
	{name: "ACMEEmail", doc: "address that the ACME server is told",
		set: func(_ *loader, t *relayFile, v value) error {
			a, err := mail.ParseAddress(v.text)
			if err != nil || a.Address != v.text {
				return reject(v.text, "is not an email address")
			}
			t.server.ACMEEmail = v.text
			return nil
		}},
	{name: "ACMERootCA", doc: "PEM file of the roots of the ACME server's own certificate; default: the host's",
		set: func(l *loader, t *relayFile, v value) error { return l.setFile(&t.server.ACMERootCA, v.text) }},
	{name: "ListenHTTP", list: true, doc: "ADDRESS:PORT or :PORT of plain HTTP: http-01 challenges, /generate_204; default none",
		set: func(_ *loader, t *relayFile, v value) (err error) {
			t.server.ListenHTTP, err = appendListen(t.server.ListenHTTP, v.text)
			return err
		}},
	{name: "TLS", doc: "off: plain HTTP behind a proxy that does TLS; default on",
		set: func(_ *loader, t *relayFile, v value) error {
			on, err := parseBool(v.text)
			t.tlsOff = err == nil && !on
			return err
		}},
	{name: "TrustProxy", list: true, doc: "addresses and prefixes of proxies whose X-Forwarded-For counts",
		set: func(_ *loader, t *relayFile, v value) error {
			list, err := parsePrefixes(v.text)
			t.server.TrustProxy = append(t.server.TrustProxy, list...)
			return err
		}},
	{name: "Allow", list: true, doc: "KEY or KEY NAME of a node that is admitted",
		set: func(l *loader, t *relayFile, v value) error {
			a, err := parseAllowed(v.text)
			if err != nil {
				return err
			}
			a.File, a.Line = l.standsAt(v.line)
			t.server.Allow, t.allowLines = append(t.server.Allow, a), append(t.allowLines, v.line)
			return nil
		}},
	{name: "AllowFile", doc: "file of such lines, which culvert relay allow writes; default: in the state folder",
		set: func(l *loader, t *relayFile, v value) error { return l.setFile(&t.server.AllowFile, v.text) }},
	{name: "Open", doc: "yes: every key is admitted; default no",
		set: func(_ *loader, t *relayFile, v value) (err error) {
			t.server.Open, err = parseBool(v.text)
			return err
		}},
	{name: "Rate", doc: "limit of what each client sends, such as 50Mbit; default none, with Open 10Mbit",
		set: func(_ *loader, t *relayFile, v value) (err error) {
			t.server.Rate, err = ParseRate(v.text)
			return err
		}},
	{name: "MaxClients", doc: "how many clients there may be; default 65536",
		set: func(_ *loader, t *relayFile, v value) (err error) {
			t.server.MaxClients, err = parseRange(v.text, "a number of clients", 1, 1<<20)
			return err
		}},
	{name: "MaxPerAddress", doc: "how many of them with one IPv4 address or IPv6 /64; default 256",
		set: func(_ *loader, t *relayFile, v value) (err error) {
			t.server.MaxPerAddress, err = parseRange(v.text, "a number of clients", 1, 1<<20)
			return err
		}},
}

var relaySTUNKeys = []key[relayFile]{
	{name: "Listen", list: true, doc: "ADDRESS:PORT or :PORT of the STUN server, or off; default :3478",
		set: func(_ *loader, t *relayFile, v value) (err error) {
			t.stun.Listen, t.stunOff, err = appendListenOrOff(t.stun.Listen, t.stunOff, v.text)
			return err
		}},
}

var relayWGSTUNKeys = []key[relayFile]{
	{name: "Listen", list: true, doc: "ADDRESS:PORT or :PORT of the WG-STUN server, or off; default :3479",
		set: func(_ *loader, t *relayFile, v value) (err error) {
			t.wgstun.Listen, t.wgstunOff, err = appendListenOrOff(t.wgstun.Listen, t.wgstunOff, v.text)
			return err
		}},
	{name: "PrivateKey", doc: "its identity; default: in the state folder, made on the first run",
		set: func(_ *loader, t *relayFile, v value) error { return t.wgstun.Key.set(v.text) }},
	{name: "PrivateKeyFile", slot: "PrivateKey", doc: "file that holds the PrivateKey",
		set: fromFile(func(_ *loader, t *relayFile, v value) error {
			return t.wgstun.Key.set(v.text)
		})},
	{name: "Address", list: true, doc: "its addresses inside the tunnel; default 100.64.0.4 and fd74:656c:696f::4",
		set: func(_ *loader, t *relayFile, v value) (err error) {
			t.wgstun.Addresses, err = parseResponders(t.wgstun.Addresses, v.text)
			return err
		}},
	{name: "Client", list: true, doc: "KEY or KEY ADDRESS of a stock WireGuard client",
		set: func(l *loader, t *relayFile, v value) error {
			c, err := parseWGSTUNClient(v.text)
			if err != nil {
				return err
			}
			c.File, c.Line = l.standsAt(v.line)
			t.wgstun.Clients, t.clientLines = append(t.wgstun.Clients, c), append(t.clientLines, v.line)
			return nil
		}},
}

var relayControlKeys = []key[relayFile]{
	{name: "Socket", doc: "path of the control socket; default: in the runtime or state folder",
		set: func(l *loader, t *relayFile, v value) error {
			if v.text == "" {
				return nil
			}
			return l.setFile(&t.control.Socket, v.text)
		}},
	{name: "HTTP", doc: "ADDRESS:PORT of metrics and health checks; default none",
		set: func(l *loader, t *relayFile, v value) (err error) {
			if t.control.HTTP, err = parseListen(v.text); err == nil && !t.control.HTTP.Addr().IsLoopback() {
				l.warn(v.line, "HTTP listens beyond this host: whoever reaches it reads the relay's traffic figures")
			}
			return err
		}},
}

func (k *RelayKey) set(text string) (err error) {
	if k.Private, err = wgkey.ParsePrivate(text); err == nil && k.Private.IsZero() {
		err = errZeroKey
	}
	return err
}

// setFile takes the name of a file beside the one being read.
func (l *loader) setFile(t *string, name string) error {
	switch {
	case name == "":
		return errors.New("no file is named")
	case looksSecret(name):
		return errors.New("this is a key, not the name of a file")
	case !filepath.IsAbs(name):
		name = filepath.Join(filepath.Dir(l.file), name)
	}
	*t = name
	return nil
}

// parseDomain reads a name that a certificate can be had for.
func parseDomain(s string) (string, error) {
	_, notIP := netip.ParseAddr(s)
	if err := checkHost(s); err != nil || notIP == nil || !strings.Contains(strings.Trim(s, "."), ".") || strings.Contains(s, "_") {
		return "", reject(s, "is not a domain that a certificate can be had for, such as relay.example")
	}
	return strings.ToLower(strings.TrimSuffix(s, ".")), nil
}

// parseWGSTUNClient reads "KEY" or "KEY ADDRESS".
func parseWGSTUNClient(s string) (c WGSTUNClient, err error) {
	words := splitList(s)
	if len(words) == 0 || len(words) > 2 {
		return c, errors.New("want a public key, and behind it the client's address in the tunnel if it has one: KEY 100.64.1.7")
	}
	if c.Key, err = parsePublic(words[0]); err != nil || len(words) == 1 {
		return c, err
	}
	p, err := parseOwnAddress(words[1])
	if err == nil && !p.IsSingleIP() {
		err = reject(words[1], "is a network: want one address")
	}
	c.Address = p.Addr()
	return c, err
}

// parsePublic reads a public key, which none of zeros only is.
func parsePublic(s string) (wgkey.Public, error) {
	k, err := wgkey.ParsePublic(s)
	if err == nil && k.IsZero() {
		err = errZeroKey
	}
	return k, err
}
