package node_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"syscall"

	"culvert.dev/culvert/node"
)

// An HTTP server inside the mesh: peers with AllowInbound reach it at the node's mesh addresses and by its name.
func Example_server() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	n, err := node.Start(ctx, node.Config{File: "culvert.conf"})
	if err != nil {
		log.Fatal(err)
	}
	defer n.Close()
	l, err := n.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s\n", r.RemoteAddr)
	})))
}

// An HTTP client of the mesh, which needs no proxy.
func Example_client() {
	n, err := node.Start(context.Background(), node.Config{File: "culvert.conf"})
	if err != nil {
		log.Fatal(err)
	}
	defer n.Close()
	client := http.Client{Transport: &http.Transport{DialContext: n.Dial}}
	r, err := client.Get("http://server.mesh/")
	if err != nil {
		log.Fatal(err)
	}
	defer r.Body.Close()
	fmt.Println(r.Status)
}
