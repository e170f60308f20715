// Package leaks finds secrets in text by the rules of gitleaks
// (https://github.com/gitleaks/gitleaks, MIT; see LICENSE.gitleaks): keywords,
// an expression, the entropy of what it found, and lists of what is none. The
// rules are data (rules.json, written by gen); the few lines that apply them
// are here, in place of a module that brings forty others.
package leaks

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
)

//go:embed rules.json
var rulesJSON []byte

// RuleSet is the form of rules.json.
type RuleSet struct {
	Rules []Rule  `json:"rules"`
	Allow []Allow `json:"allow,omitempty"` // of all rules
}

// Rule is one of gitleaks's rules.
type Rule struct {
	ID          string   `json:"id"`
	Description string   `json:"description"`
	Regex       string   `json:"regex,omitempty"`       // RE2; none: the path alone is the finding
	Path        string   `json:"path,omitempty"`        // RE2 the file's path must match
	Keywords    []string `json:"keywords,omitempty"`    // lower-case; one of them must be in the text
	Entropy     float64  `json:"entropy,omitempty"`     // bits per character that the secret must exceed
	SecretGroup int      `json:"secretGroup,omitempty"` // of Regex; 0: the first that matched
	Allow       []Allow  `json:"allow,omitempty"`
}

// Allow tells what is no secret although a rule matches.
type Allow struct {
	All       bool     `json:"all,omitempty"` // every kind of condition given must hold; else one is enough
	Target    string   `json:"target,omitempty"`
	Paths     []string `json:"paths,omitempty"`
	Regexes   []string `json:"regexes,omitempty"` // against the secret; with Target "match" or "line", against that
	StopWords []string `json:"stopWords,omitempty"`
}

// Finding is a place where a secret seems to be. It does not hold the secret.
type Finding struct {
	Rule   string // "private-key"
	Reason string // the rule's description, a sentence
	Line   int    // from 1; 0: the file as a whole
}

// Scanner applies a set of rules. It may be used from several goroutines.
type Scanner struct {
	rules []*rule
	allow []allowed
}

type rule struct {
	Rule
	once  sync.Once
	re    *regexp.Regexp
	path  *regexp.Regexp
	allow []allowed
}

type allowed struct {
	Allow
	paths, regexes []*regexp.Regexp
}

// New gives a scanner with gitleaks's rules and some of our own.
func New() (*Scanner, error) {
	var set RuleSet
	if err := json.Unmarshal(rulesJSON, &set); err != nil {
		return nil, fmt.Errorf("rules for secrets: %w", err)
	}
	return NewScanner(RuleSet{Rules: append(set.Rules, own()...), Allow: set.Allow}), nil
}

// NewScanner gives a scanner with these rules. Their expressions are compiled
// when they are first needed, and must be valid.
func NewScanner(set RuleSet) *Scanner {
	s := &Scanner{}
	for _, r := range set.Rules {
		s.rules = append(s.rules, &rule{Rule: r})
	}
	for _, a := range set.Allow {
		s.allow = append(s.allow, compile(a))
	}
	return s
}

// own are rules for what a server's files hold and gitleaks does not know.
func own() []Rule {
	return []Rule{
		{
			ID: "password-hash", Description: "A password's hash (crypt(5)), which can be tried against a dictionary at leisure.",
			Regex:    `\$(?:1|5|6|7|y|gy|2[abxy]|apr1|argon2(?:id?|d)|scrypt)\$[./A-Za-z0-9=,$-]{20,}`,
			Keywords: []string{"$1$", "$5$", "$6$", "$7$", "$y$", "$gy$", "$2a$", "$2b$", "$2x$", "$2y$", "$apr1$", "$argon2", "$scrypt$"},
		},
		{
			ID: "ldap-password-hash", Description: "A password's hash in the form of LDAP and htpasswd.",
			Regex: `\{(?:S?SHA(?:256|512)?|S?MD5)\}[A-Za-z0-9+/]{20,}={0,2}`, Keywords: []string{"{sha", "{ssha", "{md5", "{smd5"},
		},
		{
			ID: "ssh-host-key", Description: "An SSH host key: a node's comes from its server, and stays the same over its boots.",
			Path: `(?:^|/)ssh_host_[a-z0-9]+_key$`,
		},
		{
			ID: "url-password", Description: "A URL with a password in it.",
			Regex: `[a-z][a-z0-9+.-]*://[^\s/:@"'<>${}]+:([^\s/@"'<>${}]{3,})@[A-Za-z0-9\[]`, Keywords: []string{"://"}, Entropy: 1.5,
		},
	}
}

func compile(a Allow) allowed {
	c := allowed{Allow: a}
	for _, p := range a.Paths {
		c.paths = append(c.paths, regexp.MustCompile(p))
	}
	for _, r := range a.Regexes {
		c.regexes = append(c.regexes, regexp.MustCompile(r))
	}
	return c
}

func (r *rule) ready() {
	r.once.Do(func() {
		if r.Regex != "" {
			r.re = regexp.MustCompile(r.Regex)
		}
		if r.Path != "" {
			r.path = regexp.MustCompile(r.Path)
		}
		for _, a := range r.Allow {
			r.allow = append(r.allow, compile(a))
		}
	})
}

// Scan gives what seems to be a secret in a file's text, by line; one finding
// for each rule and line.
func (s *Scanner) Scan(path string, text []byte) []Finding {
	for i := range s.allow {
		if match(s.allow[i].paths, path) && !s.allow[i].All {
			return nil
		}
	}
	lower := bytes.ToLower(text)
	var found []hit
	for _, r := range s.rules {
		if len(r.Keywords) > 0 && !slices.ContainsFunc(r.Keywords, func(k string) bool { return bytes.Contains(lower, []byte(k)) }) {
			continue
		}
		r.ready()
		if r.path != nil && !r.path.MatchString(path) {
			continue
		}
		if r.re == nil {
			found = append(found, hit{Finding: Finding{Rule: r.ID, Reason: r.Description}})
			continue
		}
		found = append(found, s.matches(r, path, string(text))...)
	}
	return tidy(found)
}

type hit struct {
	Finding
	secret string
}

func (s *Scanner) matches(r *rule, path, text string) []hit {
	var out []hit
	for _, at := range r.re.FindAllStringIndex(text, -1) {
		m := strings.Trim(text[at[0]:at[1]], "\n")
		secret := m
		if groups := r.re.FindStringSubmatch(m); r.SecretGroup > 0 && len(groups) > r.SecretGroup {
			secret = groups[r.SecretGroup]
		} else if len(groups) > 1 {
			if i := slices.IndexFunc(groups[1:], func(g string) bool { return g != "" }); i >= 0 {
				secret = groups[1+i]
			}
		}
		if r.Entropy != 0 && entropy(secret) <= r.Entropy {
			continue
		}
		start := at[0] + strings.Index(text[at[0]:at[1]], m)
		line := lineAround(text, start, start+len(m))
		if isAllowed(s.allow, path, m, secret, line) || isAllowed(r.allow, path, m, secret, line) {
			continue
		}
		out = append(out, hit{Finding{r.ID, r.Description, 1 + strings.Count(text[:start], "\n")}, secret})
	}
	return out
}

// lineAround gives the whole lines that text[from:to] stands on.
func lineAround(text string, from, to int) string {
	from = strings.LastIndexByte(text[:from], '\n') + 1
	if i := strings.IndexByte(text[to:], '\n'); i >= 0 {
		return text[from : to+i]
	}
	return text[from:]
}

func match(res []*regexp.Regexp, s string) bool {
	return slices.ContainsFunc(res, func(re *regexp.Regexp) bool { return re.MatchString(s) })
}

func isAllowed(lists []allowed, path, m, secret, line string) bool {
	for _, a := range lists {
		target := secret
		switch a.Target {
		case "match":
			target = m
		case "line":
			target = line
		}
		small := strings.ToLower(secret)
		var checks []bool
		if len(a.paths) > 0 {
			checks = append(checks, match(a.paths, path))
		}
		if len(a.regexes) > 0 {
			checks = append(checks, match(a.regexes, target))
		}
		if len(a.StopWords) > 0 {
			checks = append(checks, slices.ContainsFunc(a.StopWords, func(w string) bool { return strings.Contains(small, w) }))
		}
		if a.All && len(checks) > 0 && !slices.Contains(checks, false) || !a.All && slices.Contains(checks, true) {
			return true
		}
	}
	return false
}

// entropy is Shannon's, in bits per character.
func entropy(s string) float64 {
	count := map[rune]float64{}
	for _, c := range s {
		count[c]++
	}
	var e float64
	for _, n := range count {
		p := n / float64(len(s))
		e -= p * math.Log2(p)
	}
	return e
}

// tidy sorts by line and leaves out what a better rule says already: gitleaks's
// generic rule finds what the others find, too.
func tidy(hits []hit) []Finding {
	var out []Finding
	for _, h := range hits {
		generic := strings.Contains(h.Rule, "generic")
		if generic && slices.ContainsFunc(hits, func(o hit) bool {
			return o.Line == h.Line && !strings.Contains(o.Rule, "generic") && strings.Contains(o.secret, h.secret)
		}) {
			continue
		}
		if !slices.Contains(out, h.Finding) {
			out = append(out, h.Finding)
		}
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return a.Line - b.Line })
	return out
}

// Sum names the rules, so that what passed older ones is looked at again.
func Sum() string {
	h := sha256.New()
	h.Write(rulesJSON)
	_ = json.NewEncoder(h).Encode(own())
	return hex.EncodeToString(h.Sum(nil))
}
