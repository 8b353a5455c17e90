package main

import (
	"strings"
	"testing"

	"culvert.dev/culvert/node"
)

func TestReloadTellsOfServices(t *testing.T) {
	proxy := node.ServiceStatus{Kind: "SOCKS5", Listen: []string{"127.0.0.1:1080", "[::1]:1080"}}
	old := node.ServiceStatus{Kind: "Forward", Listen: []string{"127.0.0.1:5432"}, To: "db:5432", Active: 1}
	moved := old
	moved.To = "db2:5432"
	stays := proxy
	stays.Total = 7
	var b strings.Builder
	before, after := node.Status{Services: []node.ServiceStatus{proxy, old}}, node.Status{Name: "n", Services: []node.ServiceStatus{stays, moved}}
	if err := printReload(&b, before, after); err != nil {
		t.Fatal(err)
	}
	want := "reloaded n, peers: 0\nadded Forward 127.0.0.1:5432 to db2:5432\nremoved Forward 127.0.0.1:5432 to db:5432\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}
