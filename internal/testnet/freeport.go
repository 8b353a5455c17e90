package testnet

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// The kernel gives the ports from 32768 on to sockets by itself, and nodes derive theirs from 20000 on.
const firstFree, lastFree = 10000, 19999

var given struct {
	sync.Mutex
	ports map[int]bool
}

// FreePort is a port of this host that nothing uses, neither for TCP nor for UDP. It is none of those that the kernel hands out, so
// that no connection takes it before the test does, and none that this process was given before. It is 0 if there is none.
func FreePort() int {
	given.Lock()
	defer given.Unlock()
	if given.ports == nil {
		given.ports = make(map[int]bool)
	}
	for range 1000 {
		port := firstFree + rand.IntN(lastFree-firstFree+1)
		if !given.ports[port] && isFree(port) {
			given.ports[port] = true
			return port
		}
	}
	return 0
}

func isFree(port int) bool {
	at := ":" + strconv.Itoa(port)
	l, err := net.Listen("tcp", at)
	if err != nil {
		return false
	}
	defer l.Close()
	c, err := net.ListenPacket("udp", at)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
