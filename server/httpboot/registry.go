package httpboot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"dsas"
)

// What of OCI's distribution API (distribution-spec 1.1) is answered: its read
// side, as one repository "dsas/ROLE" for each role. A manifest is given if a
// release names it; tags are the releases' numbers, and "latest" is what the
// role's nodes follow now. Nothing can be pushed.

// Images lists all releases; which are published, Releases knows.
type Images interface {
	Releases() ([]dsas.Release, error)
}

const (
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	maxManifest   = 4 << 20 // bytes; distribution-spec, "Pushing Manifests", wants no more
	maxTags       = 1000    // in one answer
	latest        = "latest"
)

// Codes of distribution-spec, "Error Codes". PAGINATION_NUMBER_INVALID is
// Docker's.
const (
	codeBlobUnknown     = "BLOB_UNKNOWN"
	codeDigestInvalid   = "DIGEST_INVALID"
	codeManifestUnknown = "MANIFEST_UNKNOWN"
	codeNameUnknown     = "NAME_UNKNOWN"
	codePage            = "PAGINATION_NUMBER_INVALID"
	codeUnsupported     = "UNSUPPORTED"
)

// registryRoutes adds the distribution API. Content by digest is blob's.
func (s *Server) registryRoutes(r chi.Router) {
	both := func(pattern, route string, h http.HandlerFunc) {
		h = s.counted(route, apiVersion(h))
		r.Get(pattern, h)
		r.Head(pattern, h)
	}
	both("/v2", "registry", s.registry)
	both("/v2/", "registry", s.registry)
	both("/v2/dsas/{name}/tags/list", "registry", s.tags)
	both("/v2/dsas/{name}/manifests/{reference}", "registry", s.manifest)
	both("/v2/dsas/{name}/blobs/{digest}", "blob", s.blob)
	other := s.counted("registry", apiVersion(s.unsupported))
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		r.Method(method, "/v2/*", other)
	}
}

// apiVersion marks an answer as a registry's, by which Docker's older clients
// know one.
func apiVersion(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
		h(w, r)
	}
}

// registry says that there is one ("Determining Support").
func (s *Server) registry(w http.ResponseWriter, r *http.Request) { writeJSON(w, struct{}{}) }

// unsupported answers all that is not there: who writes is told so.
func (s *Server) unsupported(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		s.refuse(w, http.StatusNotFound, codeNameUnknown, "there are repositories dsas/ROLE alone, with manifests, tags and blobs")
		return
	}
	w.Header().Set("Allow", "GET, HEAD")
	s.refuse(w, http.StatusMethodNotAllowed, codeUnsupported, "this registry is read-only; releases come from dsas image build and dsas image import on the server")
}

// refuse answers in the form of distribution-spec, "Error Codes".
func (s *Server) refuse(w http.ResponseWriter, status int, code, message string) {
	s.countError(status)
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string][]entry{"errors": {{code, message}}}) // who has gone needs no answer
}

// refuseErr answers err: what is not there under unknown, what is malformed
// under malformed.
func (s *Server) refuseErr(w http.ResponseWriter, r *http.Request, err error, unknown, malformed string) {
	switch {
	case errors.Is(err, dsas.ErrNotFound):
		s.refuse(w, http.StatusNotFound, unknown, err.Error())
	case errors.Is(err, dsas.ErrInvalid):
		s.refuse(w, http.StatusBadRequest, malformed, err.Error())
	default:
		s.fail(w, r, err)
	}
}

// releasesOf gives a role's releases; none is dsas.ErrNotFound.
func (s *Server) releasesOf(role string) ([]dsas.Release, error) {
	unknown := fmt.Errorf("repository dsas/%.80s: no release of such a role: %w", role, dsas.ErrNotFound)
	if s.Images == nil || dsas.CheckName("role", role) != nil {
		return nil, unknown
	}
	all, err := s.Images.Releases()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(r dsas.Release) bool { return r.Role != role || r.Damaged != "" })
	if len(all) == 0 {
		return nil, unknown
	}
	return all, nil
}

// tags lists a role's tags in ASCII order, with n and last ("Content Discovery").
func (s *Server) tags(w http.ResponseWriter, r *http.Request) {
	role := chi.URLParam(r, "name")
	releases, err := s.releasesOf(role)
	if err != nil {
		s.refuseErr(w, r, err, codeNameUnknown, codeNameUnknown)
		return
	}
	current, err := s.Releases.Assigned(nil, role)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	list := make([]string, 0, len(releases)+1)
	for _, rel := range releases {
		list = append(list, strconv.Itoa(rel.Number))
	}
	if current != nil {
		list = append(list, latest)
	}
	slices.Sort(list)
	q := r.URL.Query()
	if last := q.Get("last"); last != "" {
		list = slices.DeleteFunc(list, func(tag string) bool { return tag <= last })
	}
	n := maxTags
	if text := q.Get("n"); text != "" {
		if n, err = strconv.Atoi(text); err != nil || n < 0 {
			s.refuse(w, http.StatusBadRequest, codePage, fmt.Sprintf("n=%.20q: want a number from 0 on", text))
			return
		}
		n = min(n, maxTags)
	}
	if n > 0 && n < len(list) {
		next := url.Values{"n": {strconv.Itoa(n)}, "last": {list[n-1]}}
		w.Header().Set("Link", fmt.Sprintf("</v2/dsas/%s/tags/list?%s>; rel=\"next\"", role, next.Encode()))
	}
	writeJSON(w, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{"dsas/" + role, list[:min(n, len(list))]})
}

// manifest gives the manifest of a release's image, by tag or digest, or of what
// it boots with, by digest.
func (s *Server) manifest(w http.ResponseWriter, r *http.Request) {
	role := chi.URLParam(r, "name")
	ref, err := url.PathUnescape(chi.URLParam(r, "reference"))
	if err != nil {
		s.refuse(w, http.StatusBadRequest, codeManifestUnknown, fmt.Sprintf("reference: %v", err))
		return
	}
	releases, err := s.releasesOf(role)
	if err != nil {
		s.refuseErr(w, r, err, codeNameUnknown, codeNameUnknown)
		return
	}
	d, err := s.resolve(role, ref, releases)
	if err != nil {
		s.refuseErr(w, r, err, codeManifestUnknown, codeDigestInvalid)
		return
	}
	f, size, err := s.Blobs.Blob(d)
	if err != nil {
		s.refuseErr(w, r, err, codeManifestUnknown, codeDigestInvalid)
		return
	}
	defer f.Close()
	if size > maxManifest {
		s.fail(w, r, fmt.Errorf("manifest %s has %d bytes", d.Short(), size))
		return
	}
	b, err := io.ReadAll(f)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", mediaManifest) // of both that the store writes
	h.Set("Docker-Content-Digest", string(d))
	h.Set("ETag", `"`+string(d)+`"`)
	h.Set("Cache-Control", "no-cache") // a tag may be another manifest tomorrow
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// resolve finds the manifest that ref names in a role's repository.
func (s *Server) resolve(role, ref string, releases []dsas.Release) (dsas.Digest, error) {
	unknown := fmt.Errorf("dsas/%s has no manifest %.80q: %w", role, ref, dsas.ErrNotFound)
	if ref == latest {
		rel, err := s.Releases.Assigned(nil, role)
		if err != nil {
			return "", err
		}
		if rel == nil {
			return "", fmt.Errorf("no release of role %s is published: %w", role, dsas.ErrNotFound)
		}
		return rel.Manifest.Digest, nil
	}
	if number, err := strconv.Atoi(ref); err == nil {
		for _, rel := range releases {
			if rel.Number == number && strconv.Itoa(number) == ref {
				return rel.Manifest.Digest, nil
			}
		}
		return "", unknown
	}
	if len(ref) < 8 || ref[:7] != "sha256:" {
		return "", unknown
	}
	d, err := dsas.ParseDigest(ref)
	if err != nil {
		return "", err
	}
	for _, rel := range releases {
		if rel.Manifest.Digest == d || rel.Boot.Digest == d {
			return d, nil
		}
	}
	return "", unknown
}
