package config

import (
	"net/netip"

	"culvert.dev/culvert/internal/wgkey"
)

// RelayConfig is a valid configuration of "culvert relay" with its defaults filled in.
type RelayConfig struct {
	File     string // as given to LoadRelay; "" where there is none
	Server   RelayServer
	STUN     RelaySTUN
	WGSTUN   RelayWGSTUN
	Control  RelayControl
	Warnings []Diagnostic

	Environment []Variable // what of it comes from the environment
}

// RelayServer is the relay itself, the section [Relay]. Names of files are absolute, or relative to the working directory as
// RelayConfig.File is.
type RelayServer struct {
	Name   string       // a DNS label; default: made from the host name
	Listen []ListenAddr // empty: port 443, or 8443 where 443 may not be bound
	Key    RelayKey     // default file: <state>/relay.key
	URL    string       // as Relay.URL: what clients are told; "": to be made of a Domain or a guess
	TLS    RelayTLS

	// Of TLSFiles; both are set then.
	Certificate, CertificateKey string

	// Of TLSACME: names, lower case and without duplicates, of which there is at least one then.
	Domains       []string
	ACMEDirectory string // URL
	ACMEEmail     string // "": none
	ACMERootCA    string // file with the roots of the ACME server's own certificate; "": the host's

	ListenHTTP []ListenAddr   // for ACME's http-01 and /generate_204; empty: none
	TrustProxy []netip.Prefix // masked; whose X-Forwarded-For counts

	Allow     []Allowed // of the configuration itself; those of AllowFile come on top
	AllowFile string    // for ParseAllowed; default: <state>/allowed.keys
	Open      bool      // every key is admitted

	Rate          Rate // of each client; 0: no limit. Open without Rate has DefaultOpenRate
	MaxClients    int
	MaxPerAddress int
}

// Defaults of a relay.
const (
	DefaultOpenRate      = Rate(10_000_000)
	DefaultMaxClients    = 65536
	DefaultMaxPerAddress = 256
	DefaultACMEDirectory = "https://acme-v02.api.letsencrypt.org/directory"
)

// RelayKey is an identity of the relay.
type RelayKey struct {
	Private wgkey.Private // zero: there is none yet, to be drawn and written to File
	File    string        // the default file; "" where the configuration gives the key, or no state folder is known
}

// RelayTLS is where a relay's certificate comes from.
type RelayTLS uint8

// The ways to a certificate.
const (
	TLSSelfSigned RelayTLS = iota // made by the relay itself, clients need its pin
	TLSFiles                      // Certificate and CertificateKey
	TLSACME                       // for Domains
	TLSOff                        // none: plain HTTP, behind a proxy that has one
)

// String returns the way's name, as logs and status show it.
func (t RelayTLS) String() string {
	return [...]string{"self-signed", "files", "acme", "off"}[t]
}

// RelaySTUN is the STUN server beside the relay.
type RelaySTUN struct {
	Listen []ListenAddr // empty: off
}

// RelayWGSTUN is the WireGuard responder beside the relay.
type RelayWGSTUN struct {
	Listen    []ListenAddr // empty: off
	Key       RelayKey     // default file: <state>/wgstun.key
	Addresses []netip.Addr // as WGSTUN.Addresses
	Clients   []WGSTUNClient
}

// WGSTUNClient is a client that the configuration names, beside those that the relay knows.
type WGSTUNClient struct {
	Key     wgkey.Public
	Address netip.Addr // inside the tunnel, beside the one derived from the key; invalid: none

	// Where it stands.
	File string
	Line int
}

// RelayControl is how commands and monitoring reach a running relay.
type RelayControl struct {
	Socket string         // as Control.Socket
	HTTP   netip.AddrPort // as Control.HTTP
}
