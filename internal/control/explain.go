package control

import (
	"context"
	"net/http"
	"net/url"
)

// Explainer is a Source that tells what would become of a flow. The query says which one; its parameters are the source's, and
// the answer is a value that encoding/json can write.
type Explainer interface {
	Explain(query url.Values) (any, error)
}

func (s *Server) serveExplain(w http.ResponseWriter, r *http.Request) {
	source, ok := s.source.(Explainer)
	if !ok {
		writeJSON(w, http.StatusNotFound, failure{"there is no " + r.URL.Path})
		return
	}
	answer, err := source.Explain(r.URL.Query())
	if err != nil {
		writeJSON(w, http.StatusBadRequest, failure{err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

// Explain decodes the answer to a question into v. An error of the question is the node's own.
func (c *Client) Explain(ctx context.Context, query url.Values, v any) error {
	return c.call(ctx, http.MethodGet, "/v1/explain?"+query.Encode(), answerTime, v)
}
