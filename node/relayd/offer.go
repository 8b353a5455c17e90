package relayd

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay"
	"culvert.dev/culvert/traversal/wgstun"
)

// Offer is what a client has to be told to use the relay, and part of its status document.
type Offer struct {
	URL     string       `json:"url"`
	Guessed bool         `json:"guessed"`       // the host in it is one of this machine's own addresses
	Pin     string       `json:"pin,omitempty"` // absent: public authorities vouch for the certificate, or there is none
	STUN    string       `json:"stun,omitempty"`
	WGSTUN  *WGSTUNOffer `json:"wgstun,omitempty"`
}

// WGSTUNOffer is the WG-STUN server as a client sees it.
type WGSTUNOffer struct {
	PublicKey wgkey.Public `json:"public_key"`
	Endpoint  string       `json:"endpoint"`
	Addresses []netip.Addr `json:"addresses"` // inside the tunnel
}

// makeOffer says where the listeners are to be found, but for the pin.
func (r *Relay) makeOffer(conf *config.RelayConfig, listen []config.ListenAddr) Offer {
	var o Offer
	host := ""
	switch s := &conf.Server; {
	case s.URL != "":
		o.URL = s.URL
		if u, err := url.Parse(s.URL); err == nil {
			host = u.Hostname()
		}
	case len(s.Domains) > 0:
		host = s.Domains[0]
	default:
		host, o.Guessed = guessHost(listen), true
	}
	if o.URL == "" {
		o.URL = urlOf(conf.Server.TLS != config.TLSOff, host, addressOf(r.listeners[0]).Port())
	}
	at := func(listen []config.ListenAddr, port uint16) string {
		h := host
		if a := listen[0].Addr; o.Guessed && a.IsValid() && !a.IsUnspecified() {
			h = a.String()
		}
		return net.JoinHostPort(h, strconv.Itoa(int(port)))
	}
	if r.stun != nil {
		o.STUN = at(conf.STUN.Listen, r.stun.Addrs()[0].Port())
	}
	if r.wgstun != nil {
		o.WGSTUN = &WGSTUNOffer{PublicKey: r.wgstun.public, Endpoint: at(conf.WGSTUN.Listen, r.wgstun.port), Addresses: r.wgstun.addrs}
	}
	return o
}

// guessHost returns the address that is listened on, or, where that is every one, the most likely to be reached.
func guessHost(listen []config.ListenAddr) string {
	i := slices.IndexFunc(listen, func(a config.ListenAddr) bool { return a.Addr.IsValid() && !a.Addr.IsUnspecified() })
	if i >= 0 {
		return listen[i].Addr.String()
	}
	return config.GuessHost().String()
}

// urlOf leaves the scheme's own port out.
func urlOf(secure bool, host string, port uint16) string {
	scheme, own := "http", uint16(80)
	if secure {
		scheme, own = "https", 443
	}
	if port != own {
		return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return scheme + "://" + host
}

// newCert finds the relay's certificate, nil if it serves plain HTTP.
func (r *Relay) newCert(conf *config.RelayConfig, now time.Time) (certSource, error) {
	switch s := &conf.Server; s.TLS {
	case config.TLSOff:
		return nil, nil
	case config.TLSFiles:
		f, err := newFileCert(s.Certificate, s.CertificateKey)
		if err != nil {
			return nil, err
		}
		return f, nil
	case config.TLSACME:
		a, err := newACMECert(r.ctx, acmeConfig{
			domains: s.Domains, directory: s.ACMEDirectory, email: s.ACMEEmail, rootCA: s.ACMERootCA, cache: acmeCache(r.cfg.State),
		}, r.log)
		if err != nil {
			return nil, err
		}
		return a, nil
	}
	c, err := newSelfCert(r.cfg.State, []string{r.offer.host()}, now)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Doubt says what speaks against a guessed address, "" if nothing does.
func (o Offer) Doubt() string {
	a, err := netip.ParseAddr(o.host())
	shared := netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
	switch {
	case err != nil || !o.Guessed:
		return ""
	case a.IsLoopback():
		return ", and this host alone reaches it"
	case a.IsPrivate(), a.IsLinkLocalUnicast(), shared.Contains(a):
		return ", and no public one"
	}
	return ""
}

// host is the one in the URL.
func (o Offer) host() string {
	u, err := url.Parse(o.URL)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// pinToTell is the pin of a certificate that no public authority vouches for, "" if one does, or if there is none yet.
func (r *Relay) pinToTell() string {
	if r.cert == nil {
		return ""
	}
	leaf, err := r.cert.leaf()
	if err != nil {
		return ""
	}
	if chain, err := r.cert.get(&tls.ClientHelloInfo{}); err == nil && trusted(chain, r.offer.host(), time.Now()) {
		return ""
	}
	return relay.PinOf(leaf).String()
}

// String returns the sections of a node's configuration.
func (o Offer) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[Relay]\nURL = %s\n", o.URL)
	if o.Pin != "" {
		fmt.Fprintf(&b, "Pin = %s\n", o.Pin)
	}
	if o.STUN != "" {
		fmt.Fprintf(&b, "\n[STUN]\nServer = %s\n", o.STUN)
	}
	if w := o.WGSTUN; w != nil {
		fmt.Fprintf(&b, "\n[WGSTUN]\nPublicKey = %s\nEndpoint = %s\n", w.PublicKey, w.Endpoint)
		if !slices.Equal(w.Addresses, []netip.Addr{wgstun.ServerV4, wgstun.ServerV6}) {
			fmt.Fprintf(&b, "Address = %s\n", joinAddrs(w.Addresses))
		}
	}
	return b.String()
}

// PeerFor returns the WG-STUN server as a stock WireGuard client with the given key needs it: a [Peer] of wg-quick, and the
// addresses that the client has to have inside the tunnel, which WGSTUNStatus.AddressesOf tells.
func (w WGSTUNOffer) PeerFor(key wgkey.Public, own []netip.Addr) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# for the WireGuard client %s, whose [Interface] needs: Address = %s\n", key, joinHosts(own))
	fmt.Fprintf(&b, "[Peer]\nPublicKey = %s\nEndpoint = %s\nAllowedIPs = %s\nPersistentKeepalive = 25\n",
		w.PublicKey, w.Endpoint, joinHosts(w.Addresses))
	return b.String()
}

func joinAddrs(list []netip.Addr) string {
	text := make([]string, len(list))
	for i, a := range list {
		text[i] = a.String()
	}
	return strings.Join(text, ", ")
}

// joinHosts lists addresses as prefixes of their own, as wg-quick wants them.
func joinHosts(list []netip.Addr) string {
	text := make([]string, len(list))
	for i, a := range list {
		text[i] = netip.PrefixFrom(a, a.BitLen()).String()
	}
	return strings.Join(text, ", ")
}
