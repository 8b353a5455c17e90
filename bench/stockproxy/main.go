// Stockproxy is the plain way to offer a WireGuard tunnel as a SOCKS5 proxy without root: stock wireguard-go on its own
// netstack package, a listener of the host, and io.Copy both ways. It exists to be measured against (see bench/proxies) and
// for nothing else: it knows CONNECT to addresses, has no authentication, no limits and no timeouts.
//
// It is a module of its own because wireguard-go's netstack package needs another version of gVisor than Culvert.
//
//	stockproxy -config client.conf -listen 127.0.0.1:1080
//
// The file is that of wg-quick as far as it goes: PrivateKey, Address and MTU of one [Interface], PublicKey, AllowedIPs,
// Endpoint and PersistentKeepalive of one [Peer] or several.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("stockproxy: ")
	file := flag.String("config", "", "read the tunnel from `FILE`")
	listen := flag.String("listen", "127.0.0.1:1080", "serve SOCKS5 at `ADDRESS`")
	flag.Parse()
	if *file == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*file, *listen); err != nil {
		log.Fatal(err)
	}
}

func run(file, listen string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	c, err := parse(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	tun, mesh, err := netstack.CreateNetTUN(c.addresses, nil, c.mtu)
	if err != nil {
		return fmt.Errorf("make the netstack: %w", err)
	}
	dev := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, "stockproxy: "))
	defer dev.Close()
	if err := dev.IpcSet(c.uapi); err != nil {
		return fmt.Errorf("configure the tunnel: %w", err)
	}
	if err := dev.Up(); err != nil {
		return fmt.Errorf("bring the tunnel up: %w", err)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		client, err := l.Accept()
		if err != nil {
			return err
		}
		go serve(client, mesh)
	}
}

// serve is one connection of a client. What fails ends it.
func serve(client net.Conn, mesh *netstack.Net) {
	defer client.Close()
	to, err := request(client)
	if err != nil {
		return
	}
	target, err := mesh.DialTCPAddrPort(to)
	if err != nil {
		client.Write(reply(hostUnreachable))
		return
	}
	defer target.Close()
	if _, err := client.Write(reply(succeeded)); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(target, client)
		target.CloseWrite()
	}()
	io.Copy(client, target)
	client.(*net.TCPConn).CloseWrite()
	<-done
}

// The codes of RFC 1928 that occur here.
const (
	version         = 5
	connect         = 1
	ipv4            = 1
	ipv6            = 4
	succeeded       = 0
	hostUnreachable = 4
)

// request reads greeting and request (RFC 1928 sections 3 and 4).
func request(c net.Conn) (to netip.AddrPort, err error) {
	b := make([]byte, 256)
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return to, err
	}
	if _, err := io.ReadFull(c, b[:b[1]]); err != nil { // methods: it is the one without authentication
		return to, err
	}
	if _, err := c.Write([]byte{version, 0}); err != nil {
		return to, err
	}
	if _, err := io.ReadFull(c, b[:4]); err != nil {
		return to, err
	}
	addrLen := map[byte]int{ipv4: 4, ipv6: 16}[b[3]]
	if b[0] != version || b[1] != connect || addrLen == 0 {
		return to, fmt.Errorf("only CONNECT to addresses is known")
	}
	if _, err := io.ReadFull(c, b[:addrLen+2]); err != nil {
		return to, err
	}
	a, _ := netip.AddrFromSlice(b[:addrLen])
	return netip.AddrPortFrom(a, uint16(b[addrLen])<<8|uint16(b[addrLen+1])), nil
}

// reply is the answer to a request, without an address.
func reply(code byte) []byte { return []byte{version, code, 0, ipv4, 0, 0, 0, 0, 0, 0} }
