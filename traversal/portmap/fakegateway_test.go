package portmap

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeGateway speaks all three protocols as a gateway does, and as bad ones do. Its fields may be changed under mu.
type fakeGateway struct {
	addr   netip.Addr
	listen func(netip.AddrPort) (net.PacketConn, error)
	accept func(netip.AddrPort) (net.Listener, error)

	mu       sync.Mutex
	external netip.Addr
	started  time.Time
	table    map[uint16]fakeEntry // by external port
	asked    map[string]int       // requests by "pcp-announce", "pcp-map", "pmp-address", "pmp-map", "search", "get", and SOAP actions
	closers  []io.Closer
	control  net.PacketConn
	extra    net.PacketConn // for answers from another port
	nextPin  int

	drop       int                 // how many datagrams to lose
	mangle     func([]byte) []byte // of PCP and NAT-PMP answers; nil loses them
	elsewhere  bool                // answers come from another port
	pcpCode    byte
	pmpCode    uint16
	maxLife    uint32
	faults     map[string][]int // the error codes of the next calls of an action
	permanent  bool             // 725 for leases
	firewall   bool             // offers WANIPv6FirewallControl instead of WANIPConnection
	version    int
	location   string // instead of the right one
	descriptor func(http.ResponseWriter, *http.Request)
}

type fakeEntry struct {
	internal netip.AddrPort
	nonce    nonce
	by       Protocol
	life     uint32
	pinhole  string
}

// serve starts the given protocols.
func (g *fakeGateway) serve(t testing.TB, list ...Protocol) {
	t.Helper()
	g.table, g.asked, g.faults, g.started = map[uint16]fakeEntry{}, map[string]int{}, map[string][]int{}, time.Now().Add(-1000*time.Second)
	has := map[Protocol]bool{}
	for _, p := range list {
		has[p] = true
	}
	if has[PCP] || has[NATPMP] {
		g.control = g.socket(t, servicePort)
		g.extra = g.socket(t, 6000)
		go g.serveControl(has)
	}
	if has[UPnP] {
		c := g.socket(t, ssdpPort)
		go g.serveSearch(c)
		l, err := g.accept(netip.AddrPortFrom(g.addr, 5000))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(g.serveHTTP)}
		g.closers = append(g.closers, srv, l)
		go srv.Serve(l)
	}
}

func (g *fakeGateway) socket(t testing.TB, port uint16) net.PacketConn {
	t.Helper()
	at := netip.AddrPortFrom(g.addr, port)
	if port == ssdpPort && g.addr.IsPrivate() {
		at = netip.AddrPortFrom(netip.Addr{}, port) // for multicast
	}
	c, err := g.listen(at)
	if err != nil {
		t.Fatal(err)
	}
	g.closers = append(g.closers, c)
	return c
}

func (g *fakeGateway) stop() {
	for _, c := range g.closers {
		c.Close()
	}
	g.closers = nil
}

// with changes the gateway while it runs.
func (g *fakeGateway) with(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

// reboot forgets everything.
func (g *fakeGateway) reboot() {
	g.with(func() { g.table, g.started = map[uint16]fakeEntry{}, time.Now() })
}

func (g *fakeGateway) count(what string) (n int) {
	g.with(func() { n = g.asked[what] })
	return n
}

// entries renders the table.
func (g *fakeGateway) entries() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []string
	for port := range 1 << 16 {
		if e, ok := g.table[uint16(port)]; ok {
			list = append(list, fmt.Sprintf("%s %d>%v", e.by, port, e.internal))
		}
	}
	return strings.Join(list, ", ")
}

func (g *fakeGateway) epoch() uint32 { return uint32(time.Since(g.started) / time.Second) }

// announce sends what a gateway sends to all hosts after it has started.
func (g *fakeGateway) announce(to netip.AddrPort) {
	g.with(func() {
		b := binary.BigEndian.AppendUint32([]byte{0, 128, 0, 0}, g.epoch())
		a := g.external.As4()
		g.control.WriteTo(append(b, a[:]...), net.UDPAddrFromAddrPort(to))
	})
}

func (g *fakeGateway) serveControl(has map[Protocol]bool) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := g.control.ReadFrom(buf)
		if err != nil {
			return
		}
		g.mu.Lock()
		client := from.(*net.UDPAddr).AddrPort()
		client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
		var answer []byte
		switch {
		case g.drop > 0:
			g.drop--
		case buf[0] == 2 && has[PCP]:
			answer = g.pcp(buf[:n], client.Addr())
		case buf[0] == 2:
			answer = binary.BigEndian.AppendUint32([]byte{0, 128, 0, 1}, g.epoch())
		case buf[0] == 0 && has[NATPMP]:
			answer = g.pmp(buf[:n], client.Addr())
		}
		c := g.control
		if g.elsewhere {
			c = g.extra
		}
		if answer != nil && g.mangle != nil {
			answer = g.mangle(answer)
		}
		g.mu.Unlock()
		if answer != nil {
			c.WriteTo(answer, from)
		}
	}
}

func (g *fakeGateway) pcp(b []byte, client netip.Addr) []byte {
	answer := append([]byte{}, b...)
	answer[1] |= 0x80
	answer[3] = g.pcpCode
	binary.BigEndian.PutUint32(answer[8:], g.epoch())
	clear(answer[12:24])
	if netip.AddrFrom16([16]byte(b[8:24])).Unmap() != client {
		answer[3] = pcpAddressMismatch
	}
	if b[1] == pcpAnnounce {
		g.asked["pcp-announce"]++
		return answer
	}
	g.asked["pcp-map"]++
	internal := netip.AddrPortFrom(client, binary.BigEndian.Uint16(b[40:]))
	port, life := binary.BigEndian.Uint16(b[42:]), binary.BigEndian.Uint32(b[4:])
	e := fakeEntry{internal: internal, nonce: nonce(b[24:36]), by: PCP, life: life}
	port, code := g.enter(port, e)
	if answer[3] == 0 {
		answer[3] = byte(code)
	}
	if answer[3] != 0 {
		return answer
	}
	binary.BigEndian.PutUint32(answer[4:], g.limited(life))
	binary.BigEndian.PutUint16(answer[42:], port)
	external := g.external
	if client.Is6() {
		external = client
	}
	a := external.As16()
	copy(answer[44:60], a[:])
	return answer
}

func (g *fakeGateway) limited(life uint32) uint32 {
	if g.maxLife > 0 {
		return min(life, g.maxLife)
	}
	return life
}

// enter makes, renews or deletes an entry, and returns the port it has. Entries of others' nonces are theirs.
func (g *fakeGateway) enter(port uint16, e fakeEntry) (uint16, int) {
	if port == 0 {
		port = e.internal.Port()
	}
	for p, old := range g.table {
		if old.internal == e.internal && old.by == e.by {
			if old.nonce != e.nonce {
				return 0, pcpNotAuthorized
			}
			port = p
		}
	}
	if e.life == 0 {
		delete(g.table, port)
		return 0, 0
	}
	for {
		if old, taken := g.table[port]; !taken || old.internal == e.internal {
			g.table[port] = e
			return port, 0
		}
		port++
	}
}

func (g *fakeGateway) pmp(b []byte, client netip.Addr) []byte {
	answer := []byte{0, b[1] | 128, 0, 0}
	binary.BigEndian.PutUint16(answer[2:], g.pmpCode)
	answer = binary.BigEndian.AppendUint32(answer, g.epoch())
	if b[1] == pmpAddress {
		g.asked["pmp-address"]++
		a := g.external.As4()
		return append(answer, a[:]...)
	}
	g.asked["pmp-map"]++
	internal := netip.AddrPortFrom(client, binary.BigEndian.Uint16(b[4:]))
	life := binary.BigEndian.Uint32(b[8:])
	port, _ := g.enter(binary.BigEndian.Uint16(b[6:]), fakeEntry{internal: internal, by: NATPMP, life: life})
	answer = append(answer, b[4:6]...)
	answer = binary.BigEndian.AppendUint16(answer, port)
	return binary.BigEndian.AppendUint32(answer, g.limited(life))
}

func (g *fakeGateway) serveSearch(c net.PacketConn) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		g.mu.Lock()
		lost := g.drop > 0 || !strings.HasPrefix(string(buf[:n]), "M-SEARCH ") || !strings.Contains(string(buf[:n]), "Device:1\r\n")
		g.drop = max(0, g.drop-1)
		g.asked["search"]++
		location := g.location
		g.mu.Unlock()
		if location == "" {
			location = "http://" + netip.AddrPortFrom(g.addr, 5000).String() + "/root.xml"
		}
		if !lost {
			c.WriteTo([]byte("HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: "+location+"\r\n\r\n"), from)
		}
	}
}

func (g *fakeGateway) serveHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.Method == http.MethodGet {
		g.asked["get"]++
		if f := g.descriptor; f != nil {
			g.mu.Unlock()
			f(w, r)
			g.mu.Lock()
			return
		}
		kind := typeIP
		if g.firewall {
			kind = typeFirewall
		}
		io.WriteString(w, device(max(1, g.version), "", [2]string{kind + strconv.Itoa(max(1, g.version)), "/control"}))
		return
	}
	body, _ := io.ReadAll(r.Body)
	_, action, _ := strings.Cut(strings.Trim(r.Header.Get("SOAPAction"), `"`), "#")
	g.asked[action]++
	args := map[string]string{}
	walkXML(body, nil, nil, func(path []string, text string) { args[path[len(path)-1]] = text })
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	client, _ := netip.ParseAddr(host)
	code, values := g.action(action, args, client.Unmap().WithZone(""))
	if list := g.faults[action]; len(list) > 0 {
		code, g.faults[action] = list[0], list[1:]
	}
	if code != 0 {
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, soapFault(code))
		return
	}
	io.WriteString(w, envelope("<u:"+action+"Response>"+values+"</u:"+action+"Response>"))
}

func (g *fakeGateway) action(action string, args map[string]string, client netip.Addr) (code int, values string) {
	number := func(name string) uint16 { n, _ := strconv.ParseUint(args[name], 10, 16); return uint16(n) }
	life, _ := strconv.ParseUint(args["NewLeaseDuration"]+args["LeaseTime"]+args["NewLeaseTime"], 10, 32)
	if c := args["NewInternalClient"] + args["InternalClient"]; c != "" && c != client.String() {
		return upnpNotAuthorized, ""
	}
	port := number("NewExternalPort")
	e := fakeEntry{internal: netip.AddrPortFrom(client, number("NewInternalPort")), by: UPnP, life: uint32(life)}
	old, taken := g.table[port]
	switch {
	case action == "GetExternalIPAddress":
		text := ""
		if g.external.IsValid() {
			text = g.external.String()
		}
		return 0, "<NewExternalIPAddress>" + text + "</NewExternalIPAddress>"
	case strings.HasPrefix(action, "Add") && g.permanent && life > 0:
		return upnpOnlyPermanent, ""
	case action == "AddAnyPortMapping" && g.version == 2:
		for taken && old.internal != e.internal {
			port++
			old, taken = g.table[port]
		}
		g.table[port] = e
		return 0, fmt.Sprintf("<NewReservedPort>%d</NewReservedPort>", port)
	case action == "AddPortMapping":
		if taken && old.internal != e.internal {
			return upnpConflict, ""
		}
		g.table[port] = e
		return 0, ""
	case action == "DeletePortMapping":
		delete(g.table, port)
		return 0, ""
	case action == "GetFirewallStatus":
		return 0, "<FirewallEnabled>1</FirewallEnabled><InboundPinholeAllowed>1</InboundPinholeAllowed>"
	case action == "AddPinhole":
		g.nextPin++
		e.pinhole, e.internal = strconv.Itoa(g.nextPin), netip.AddrPortFrom(client, number("InternalPort"))
		g.table[e.internal.Port()] = e
		return 0, "<UniqueID>" + e.pinhole + "</UniqueID>"
	case action == "UpdatePinhole", action == "DeletePinhole":
		for p, x := range g.table {
			if x.pinhole == args["UniqueID"] {
				if action == "DeletePinhole" {
					delete(g.table, p)
				}
				return 0, ""
			}
		}
		return upnpNoSuchPinhole, ""
	}
	return upnpInvalidAction, ""
}
