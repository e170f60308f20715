// Command gen writes ../rules.json from the rules of the gitleaks module that
// go.mod names: go get github.com/zricethezav/gitleaks/v8@VERSION && go run . && go test .
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/viper"
	"github.com/zricethezav/gitleaks/v8/config"

	"dsas/imagebuild/leaks"
)

func main() {
	if err := run("../rules.json"); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(name string) error {
	cfg, err := load()
	if err != nil {
		return err
	}
	var out leaks.RuleSet
	for _, a := range cfg.Allowlists {
		out.Allow = append(out.Allow, allow(a))
	}
	for _, id := range cfg.OrderedRules {
		r := cfg.Rules[id]
		if len(r.RequiredRules) > 0 || r.SkipReport {
			return fmt.Errorf("rule %s is made of others, which package leaks does not know", id)
		}
		n := leaks.Rule{ID: r.RuleID, Description: r.Description, Entropy: r.Entropy, SecretGroup: r.SecretGroup}
		if r.Regex != nil {
			n.Regex = r.Regex.String()
		}
		if r.Path != nil {
			n.Path = r.Path.String()
		}
		for _, k := range r.Keywords {
			n.Keywords = append(n.Keywords, strings.ToLower(k))
		}
		for _, a := range r.Allowlists {
			n.Allow = append(n.Allow, allow(a))
		}
		out.Rules = append(out.Rules, n)
	}
	slices.SortFunc(out.Rules, func(a, b leaks.Rule) int { return strings.Compare(a.ID, b.ID) })
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(out); err != nil {
		return err
	}
	return os.WriteFile(name, buf.Bytes(), 0o644)
}

// load reads the rules that gitleaks uses when it is given none.
func load() (config.Config, error) {
	v := viper.New()
	v.SetConfigType("toml")
	if err := v.ReadConfig(strings.NewReader(config.DefaultConfig)); err != nil {
		return config.Config{}, err
	}
	var vc config.ViperConfig
	if err := v.Unmarshal(&vc); err != nil {
		return config.Config{}, err
	}
	return vc.Translate()
}

func allow(a *config.Allowlist) leaks.Allow {
	n := leaks.Allow{All: a.MatchCondition == config.AllowlistMatchAnd, Target: a.RegexTarget}
	for _, r := range a.Paths {
		n.Paths = append(n.Paths, r.String())
	}
	for _, r := range a.Regexes {
		n.Regexes = append(n.Regexes, r.String())
	}
	for _, s := range a.StopWords {
		n.StopWords = append(n.StopWords, strings.ToLower(s))
	}
	slices.Sort(n.StopWords)
	return n
}
