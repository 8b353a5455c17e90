package control

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
)

// Pinger is a Source that sends echo requests to peers. The query says to whom and how often; its parameters are the source's.
type Pinger interface {
	// PingPeer calls emit for every event until all is done, ctx ends or emit fails. An error before the first event is one of the query.
	PingPeer(ctx context.Context, query url.Values, emit func(event any) error) error
}

func (s *Server) servePing(w http.ResponseWriter, r *http.Request, source Pinger) {
	var l *lineWriter
	err := source.PingPeer(r.Context(), r.URL.Query(), func(event any) (err error) {
		if l == nil {
			if l, err = startLines(w); err != nil {
				return err
			}
		}
		if err := l.enc.Encode(event); err != nil {
			return err
		}
		return l.flush()
	})
	if err != nil && l == nil && r.Context().Err() == nil {
		writeJSON(w, http.StatusBadRequest, failure{err.Error()})
	}
}

// withPinger serves what only a source with peers has.
func (s *Server) withPinger(serve func(http.ResponseWriter, *http.Request, Pinger)) http.HandlerFunc {
	source, ok := s.source.(Pinger)
	if !ok {
		return nil
	}
	return func(w http.ResponseWriter, r *http.Request) { serve(w, r, source) }
}

// Ping has the node send echo requests as query says, and calls fn for each event. It returns nil when they are done, or ctx has
// ended.
func (c *Client) Ping(ctx context.Context, query url.Values, fn func(document json.RawMessage) error) error {
	err := c.lines(ctx, "/v1/ping", query, fn)
	if ctx.Err() != nil {
		return nil
	}
	return err
}
