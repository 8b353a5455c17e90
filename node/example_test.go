package node_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"culvert.dev/culvert/node"
)

// An HTTP server inside the mesh: peers with AllowInbound reach it at the node's mesh addresses and by its name.
func Example_server() {
	n, err := node.Start(context.Background(), node.Config{File: "culvert.conf", Logger: slog.Default()})
	if err != nil {
		log.Fatal(err)
	}
	defer n.Close()
	l, err := n.Listen("tcp", ":80") // at the node's mesh addresses, for peers with AllowInbound
	if err != nil {
		log.Fatal(err)
	}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s\n", r.RemoteAddr)
	})}
	go server.Serve(l)

	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	<-stop.Done()
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	server.Shutdown(grace) // requests end, then the node
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
