package testnet

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// TestHTTPByName: what a relay needs. The server learns the client's outer address.
func TestHTTPByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		inet := n.Internet()
		site := inet.Site("home", CGNS, SiteConfig{})
		client, relay := site.Host("client", HostConfig{}), inet.Host("relay", HostConfig{})
		l, err := relay.Listen(netip.AddrPortFrom(netip.Addr{}, 443))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RemoteAddr) })}
		go srv.Serve(l)
		defer srv.Close()
		tr := &http.Transport{DialContext: client.Dial}
		defer tr.CloseIdleConnections()
		c := http.Client{Transport: tr, Timeout: 5 * time.Second}
		if _, err := c.Get("http://relay.example:443/"); !errors.As(err, new(*net.DNSError)) {
			t.Errorf("before it has a name: %v", err)
		}
		n.SetName("relay.example", relay.Addr6(), relay.Addr()) // the client has no IPv6
		resp, err := c.Get("http://relay.example:443/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		seen, _ := io.ReadAll(resp.Body)
		if got, err := netip.ParseAddrPort(string(seen)); err != nil || got.Addr() != site.Carrier.WAN()[0] {
			t.Errorf("the relay saw %q, want an address of the carrier, %v", seen, site.Carrier.WAN())
		}
		relay.Link().Cut()
		start := time.Now()
		if _, err := c.Get("http://relay.example:443/"); err == nil || time.Since(start) < 5*time.Second {
			t.Errorf("cut off: %v after %v", err, time.Since(start))
		}
	})
}
