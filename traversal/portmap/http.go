package portmap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

const (
	maxBody     = 64 << 10
	maxHeader   = 8 << 10
	httpTimeout = 3 * time.Second // of a request with its answer: routers' processors are slow
)

// errTooLarge is an answer of more than maxBody.
var errTooLarge = errors.New("the answer is larger than 64 KiB")

// get fetches a document of the gateway's.
func (l *link) get(ctx context.Context, at location) ([]byte, error) {
	body, status, err := l.roundTrip(ctx, http.MethodGet, at, "", "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("http status %d", status)
	}
	return body, err
}

// post calls a SOAP action. Faults come with status 500, and are for the caller to read.
func (l *link) post(ctx context.Context, at location, action, body string) ([]byte, error) {
	answer, status, err := l.roundTrip(ctx, http.MethodPost, at, action, body)
	if err == nil && status != http.StatusOK && status != http.StatusInternalServerError {
		err = fmt.Errorf("http status %d", status)
	}
	return answer, err
}

// roundTrip sends one request on a connection of its own. Whatever the URL says, the connection is to the gateway's address; no
// proxy is used and no redirect followed.
func (l *link) roundTrip(ctx context.Context, method string, at location, action, body string) ([]byte, int, error) {
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	defer cancel()
	to := netip.AddrPortFrom(l.gw.Addr, at.port)
	host := netip.AddrPortFrom(l.gw.Addr.WithZone(""), at.port).String() // the Host header knows no zones
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+at.path, strings.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	if action != "" {
		req.Header.Set("Content-Type", `text/xml; charset="utf-8"`)
		req.Header["SOAPAction"] = []string{action} // in this spelling: some gateways compare with case
	}
	req.Header.Set("User-Agent", "culvert UPnP/1.1")
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return l.cfg.Dial(ctx, "tcp", l.gw.Local, to)
		},
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
	}
	l.http.Add(1)
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, 0, fmt.Errorf("http: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, 0, fmt.Errorf("http: %w", err)
	}
	if len(answer) > maxBody {
		l.tooLarge.Add(1)
		return nil, 0, errTooLarge
	}
	return answer, resp.StatusCode, nil
}
