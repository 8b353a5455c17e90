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
// one. Of Sources.Environ the variables CULVERT_RELAYD_KEY count for [Relay], such as CULVERT_RELAYD_URL, and
// CULVERT_RELAYD_SECTION_KEY for the other sections; they win over the file. Extra has no use here. The error is Errors, or one that
// wraps the cause why file itself cannot be read (fs.ErrNotExist). The allow file is read too, but only to find what is wrong with
// it: see ParseAllowed.
func LoadRelay(file string, o Options) (*RelayConfig, error) {
	return loadRelay(file, o, readFile, ParseAllowed)
}

func loadRelay(
	file string, o Options, readFile func(string) (*content, error), readAllowed func(string) ([]Allowed, error),
) (*RelayConfig, error) {
	l := newRelayLoader(o, readFile)
	if err := l.readRelayConfig(file); err != nil {
		return nil, err
	}
	return l.finishRelay(file, readAllowed)
}

// readRelayConfig collects what the file and the environment say. The error is that of the file.
func (l *loader) readRelayConfig(file string) error {
	l.cfg.File, l.unnamed = file, environmentName
	text := &content{}
	if file != "" {
		var err error
		if text, err = l.readFile(file); err != nil {
			return fmt.Errorf("read configuration: %w", err)
		}
	}
	sections := l.open(file, text)
	l.readMain(file, l.overlay(sections, l.environmentSections(l.Environ)))
	l.close(text)
	return nil
}

// finishRelay checks what no single line can tell, fills in defaults, and returns the result.
func (l *loader) finishRelay(file string, readAllowed func(string) ([]Allowed, error)) (*RelayConfig, error) {
	l.file = file
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
	if err := l.conclude(); err != nil {
		return nil, err
	}
	l.sort(l.warnings)
	return &RelayConfig{
		File: file, Server: r.server, STUN: r.stun, WGSTUN: r.wgstun, Control: r.control,
		Warnings: l.warnings, Environment: l.cfg.Environment,
	}, nil
}

// checkRelayTLS decides where the certificate comes from.
func (l *loader) checkRelayTLS() {
	s, keys := &l.relay.server, l.relay.serverKeys
	cert, hasCert := keys["Certificate"]
	certKey, hasKey := keys["CertificateKey"]
	domain, hasDomain := keys["Domain"]
	if hasCert != hasKey {
		l.fault(cmp.Or(cert, certKey), "Certificate and CertificateKey go together")
	}
	switch {
	case l.relay.tlsOff && (hasCert || hasDomain):
		l.fault(keys["TLS"], "TLS: off leaves no use for the certificate %s", l.at(cmp.Or(cert, domain)))
	case hasCert && hasDomain:
		l.fault(domain, "Domain: the certificate comes by ACME or from the files %s, not both", l.at(cert))
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
	for i, a := range s.Allow {
		line := l.relay.allowLines[i]
		if before, twice := first[a.Key]; twice {
			l.fault(line, "Allow: the same key stands %s", l.at(before))
			continue
		}
		first[a.Key] = line
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
	for i, c := range w.Clients {
		line := l.relay.clientLines[i]
		if before, twice := lines[c.Key]; twice {
			l.fault(line, "Client: the same key stands %s", l.at(before))
		}
		lines[c.Key] = line
		if !c.Address.IsValid() {
			continue
		}
		if before, twice := owners[c.Address]; twice {
			l.fault(line, "Client: %s is the address of the client %s", c.Address, l.at(before))
		} else if slices.Contains(w.Addresses, c.Address) {
			l.fault(line, "Client: %s is the server's own address", c.Address)
		}
		owners[c.Address] = line
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
