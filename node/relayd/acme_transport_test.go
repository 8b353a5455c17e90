package relayd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestRequestsEndWithTheRelay(t *testing.T) {
	came, hold := make(chan bool, 1), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ok" {
			io.WriteString(w, "ok")
			return
		}
		came <- true
		<-hold
	}))
	defer server.Close()
	defer close(hold)
	ctx, cancel := context.WithCancel(t.Context())
	client := &http.Client{Transport: &boundTransport{http.DefaultTransport, ctx}}
	defer client.CloseIdleConnections()
	get := func(path string) error {
		resp, err := client.Get(server.URL + path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
		return err
	}
	if err := get("/ok"); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- get("/hangs") }()
	<-came
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a request under way: %v", err)
	}
	if err := get("/ok"); !errors.Is(err, context.Canceled) {
		t.Errorf("a request afterwards: %v", err)
	}
}
