package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
)

const (
	dialTime      = 2 * time.Second
	answerTime    = 10 * time.Second // unless the caller's context ends sooner
	maxDocument   = 64 << 20
	unixSocketURL = "http://culvert" // the host is not used
)

// Client talks to the node at a control socket, with a new connection for each call. Errors say what the user can do.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client for the socket at path. It does not connect yet.
func NewClient(path string) *Client {
	dialer := &net.Dialer{Timeout: dialTime}
	return &Client{path: path, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}}
}

// NotReadyError is the answer of a node that runs but is not ready.
type NotReadyError struct{ Reason string }

func (e *NotReadyError) Error() string { return "not ready: " + e.Reason }

// NotRunningError means that no node serves the socket.
type NotRunningError struct{ message string }

func (e *NotRunningError) Error() string { return e.message }

// Status decodes the status document into v.
func (c *Client) Status(ctx context.Context, v any) error {
	return c.call(ctx, http.MethodGet, "/v1/status", answerTime, v)
}

// Health returns nil when the node is ready, a *NotReadyError when it is not, and other errors when it cannot be asked.
func (c *Client) Health(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, "/v1/health", answerTime, new(health))
}

// Reload has the node read its configuration again. The error is the node's own; nothing has changed then.
func (c *Client) Reload(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/reload", writeTime, new(struct{}))
}

// Version returns the version of the running program.
func (c *Client) Version(ctx context.Context) (string, error) {
	var v version
	err := c.call(ctx, http.MethodGet, "/v1/version", answerTime, &v)
	return v.Version, err
}

// Runtime returns what the node's process uses.
func (c *Client) Runtime(ctx context.Context) (Runtime, error) {
	var u Runtime
	err := c.call(ctx, http.MethodGet, "/v1/runtime", answerTime, &u)
	return u, err
}

func (c *Client) call(ctx context.Context, method, path string, limit time.Duration, v any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, unixSocketURL+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument))
	if err != nil {
		return c.explain(err)
	}
	if resp.StatusCode != http.StatusOK {
		return c.refused(resp, body)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s: the answer is not what this version of culvert expects: %w", c.path, err)
	}
	return nil
}

// refused returns the error that the node sent.
func (c *Client) refused(resp *http.Response, body []byte) error {
	var answer struct {
		failure
		health
	}
	switch err := json.Unmarshal(body, &answer); {
	case err == nil && answer.Reason != "":
		return &NotReadyError{answer.Reason}
	case err == nil && answer.Error != "":
		return errors.New(answer.Error)
	default:
		return fmt.Errorf("%s: the node answered %s", c.path, resp.Status)
	}
}

// explain turns a failure to talk into what it means to the user.
func (c *Client) explain(err error) error {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return &NotRunningError{fmt.Sprintf("no culvert is running for %s; start it with: culvert up", c.path)}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &NotRunningError{fmt.Sprintf("no culvert is running for %s, the socket is left from one that was killed; start it with: culvert up", c.path)}
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("permission denied for %s; use the account that runs culvert%s", c.path, owner(c.path))
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("the culvert at %s closed the connection; it is stopping, or runs under another account", c.path)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("the culvert at %s does not answer", c.path)
	default:
		return fmt.Errorf("%s: %w", c.path, err)
	}
}
