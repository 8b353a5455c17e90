package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"culvert.dev/culvert/internal/wgkey"
)

// Files of a relay in the state folder.
const (
	relayKeyName  = "relay.key"
	wgstunKeyName = "wgstun.key"
	allowFileName = "allowed.keys"
)

// LoadRelay reads the configuration of a relay, and the keys that it names or that lie in the state folder; file "" is an empty
// one. The error is Errors, or one that wraps the cause why file itself cannot be read (fs.ErrNotExist). The allow file is read
// too, but only to find what is wrong with it: see ParseAllowed.
func LoadRelay(file string, o Options) (*RelayConfig, error) {
	return loadRelay(file, o, readFile, ParseAllowed)
}

func loadRelay(
	file string, o Options, readFile func(string) (*content, error), readAllowed func(string) ([]Allowed, error),
) (*RelayConfig, error) {
	l := newLoader(o, readFile)
	l.format = relayFormat()
	r := &l.relay
	r.serverKeys, r.stunKeys, r.wgstunKeys, r.controlKeys = map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}
	if file != "" {
		text, err := readFile(file)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		l.readRelayFile(file, text)
	}
	return l.finishRelay(file, readAllowed)
}

func (l *loader) readRelayFile(file string, text *content) {
	r := &l.relay
	for _, s := range l.open(file, text) {
		switch strings.ToLower(s.name) {
		case "relay":
			readSection(l, s, relayServerKeys, r, r.serverKeys)
		case "stun":
			readSection(l, s, relaySTUNKeys, r, r.stunKeys)
		case "wgstun":
			readSection(l, s, relayWGSTUNKeys, r, r.wgstunKeys)
		case "control":
			readSection(l, s, relayControlKeys, r, r.controlKeys)
		case "": // scan has reported it
		default:
			l.unknownSection(s)
		}
	}
	l.close(text)
}

// finishRelay checks what no single line can tell, fills in defaults, and returns the result.
func (l *loader) finishRelay(file string, readAllowed func(string) ([]Allowed, error)) (*RelayConfig, error) {
	l.cfg.File, l.file = file, file
	r := &l.relay
	l.checkRelayTLS()
	l.checkRelayAdmission()
	l.checkRelayWGSTUN()
	l.relayDefaults()
	l.relayKey(&r.server.Key, r.serverKeys, relayKeyName)
	if !r.wgstunOff {
		l.relayKey(&r.wgstun.Key, r.wgstunKeys, wgstunKeyName)
	}
	if k := r.server.Key.Private; !k.IsZero() && k == r.wgstun.Key.Private {
		l.faultAt(file, r.wgstunKeys["PrivateKey"], "PrivateKey: [Relay] has the same key; the WG-STUN server needs one of its own")
	}
	l.checkAllowFile(readAllowed)
	l.sort(l.faults)
	if len(l.faults) > 0 {
		return nil, l.faults
	}
	l.sort(l.warnings)
	return &RelayConfig{File: file, Server: r.server, STUN: r.stun, WGSTUN: r.wgstun, Control: r.control, Warnings: l.warnings}, nil
}

// checkRelayTLS decides where the certificate comes from.
func (l *loader) checkRelayTLS() {
	s, keys := &l.relay.server, l.relay.serverKeys
	cert, hasCert := keys["Certificate"]
	certKey, hasKey := keys["CertificateKey"]
	domain, hasDomain := keys["Domain"]
	if hasCert != hasKey {
		l.fault(max(cert, certKey), "Certificate and CertificateKey go together")
	}
	switch {
	case l.relay.tlsOff && (hasCert || hasDomain):
		l.fault(keys["TLS"], "TLS: off leaves no use for the certificate of line %d", max(cert, domain))
	case hasCert && hasDomain:
		l.fault(domain, "Domain: the certificate comes by ACME or from the files on line %d, not both", cert)
	case l.relay.tlsOff:
		s.TLS = TLSOff
		if len(s.TrustProxy) == 0 {
			l.warn(keys["TLS"], "TLS: without TrustProxy the proxy's address counts as that of all clients, so that MaxPerAddress is theirs together")
		}
	case hasCert:
		s.TLS = TLSFiles
	case hasDomain:
		s.TLS = TLSACME
	}
	for _, name := range []string{"ACMEDirectory", "ACMEEmail", "ACMERootCA"} {
		if line, given := keys[name]; given && !hasDomain {
			l.fault(line, "%s: there is no Domain to get a certificate for", name)
		}
	}
	if line, given := keys["URL"]; given && strings.HasPrefix(s.URL, "http:") && s.TLS != TLSOff {
		l.fault(line, "URL: %s is for a relay with TLS = off; this one speaks https", s.URL)
	}
}

// checkRelayAdmission finds keys that are named twice, and limits that contradict each other.
func (l *loader) checkRelayAdmission() {
	s, keys := &l.relay.server, l.relay.serverKeys
	first := map[wgkey.Public]int{}
	for _, a := range s.Allow {
		if line, twice := first[a.Key]; twice {
			l.fault(a.Line, "Allow: line %d has the same key", line)
			continue
		}
		first[a.Key] = a.Line
	}
	if s.Open && len(s.Allow) > 0 {
		l.warn(keys["Open"], "Open: every key is admitted, so that Allow keeps nobody out")
	}
	if s.MaxPerAddress > s.MaxClients && s.MaxClients > 0 {
		l.warn(keys["MaxPerAddress"], "MaxPerAddress: more than MaxClients, %d", s.MaxClients)
	}
}

// checkRelayWGSTUN finds clients and addresses that are named twice.
func (l *loader) checkRelayWGSTUN() {
	w, keys := &l.relay.wgstun, l.relay.wgstunKeys
	if line, given := keys["Address"]; given && len(w.Addresses) == 0 && !l.hasFault(line) {
		l.fault(line, "Address: no address is given; without the key the well-known ones are taken")
	} else if !given {
		w.Addresses = wgstunAddresses()
	}
	lines, owners := map[wgkey.Public]int{}, map[netip.Addr]int{}
	for _, c := range w.Clients {
		if line, twice := lines[c.Key]; twice {
			l.fault(c.Line, "Client: line %d has the same key", line)
		}
		lines[c.Key] = c.Line
		if !c.Address.IsValid() {
			continue
		}
		if line, twice := owners[c.Address]; twice {
			l.fault(c.Line, "Client: %s is the address of the client on line %d", c.Address, line)
		} else if slices.Contains(w.Addresses, c.Address) {
			l.fault(c.Line, "Client: %s is the server's own address", c.Address)
		}
		owners[c.Address] = c.Line
	}
}

func (l *loader) relayDefaults() {
	r := &l.relay
	s := &r.server
	if s.Name == "" {
		host, _ := l.Hostname() // a host without a name gets the general one
		s.Name = NameFromHost(host)
	}
	if s.Rate == 0 && s.Open {
		s.Rate = DefaultOpenRate
	}
	s.MaxClients = cmp.Or(s.MaxClients, DefaultMaxClients)
	s.MaxPerAddress = cmp.Or(s.MaxPerAddress, DefaultMaxPerAddress)
	s.ACMEDirectory = cmp.Or(s.ACMEDirectory, DefaultACMEDirectory)
	if s.AllowFile == "" && l.State != "" {
		s.AllowFile = filepath.Join(l.State, allowFileName)
	}
	if len(r.stun.Listen) == 0 && !r.stunOff {
		r.stun.Listen = []ListenAddr{{Port: stunPort}}
	}
	if len(r.wgstun.Listen) == 0 && !r.wgstunOff {
		r.wgstun.Listen = []ListenAddr{{Port: wgstunPort}}
	}
}

// relayKey reads a key from its default place, unless the configuration has it. It need not exist yet.
func (l *loader) relayKey(k *RelayKey, keys map[string]int, name string) {
	if _, given := keys["PrivateKey"]; given || l.State == "" {
		return
	}
	k.File = filepath.Join(l.State, name)
	text, err := l.readFile(k.File)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		l.warnMode(k.File, text)
		err = k.set(strings.TrimSpace(string(text.bytes)))
	}
	if err != nil {
		l.faultAt(k.File, 0, "read the relay's key: %v", cause(err))
	}
}

// checkAllowFile reports what is wrong with the allow file. That it is not there yet is worth a warning where it is asked for.
func (l *loader) checkAllowFile(read func(string) ([]Allowed, error)) {
	s := &l.relay.server
	if s.AllowFile == "" {
		return
	}
	_, err := read(s.AllowFile)
	var faults Errors
	line, given := l.relay.serverKeys["AllowFile"]
	switch {
	case errors.As(err, &faults):
		l.files = append(l.files, s.AllowFile)
		l.faults = append(l.faults, faults...)
	case errors.Is(err, fs.ErrNotExist):
		if given {
			l.file = l.cfg.File
			l.warn(line, "AllowFile: there is no %s yet; culvert relay allow makes it", s.AllowFile)
		}
	case err != nil && !given:
		l.faultAt(s.AllowFile, 0, "read allow file: %v", cause(err))
	case err != nil:
		l.faultAt(l.cfg.File, line, "AllowFile: read %s: %v", s.AllowFile, cause(err))
	}
}
