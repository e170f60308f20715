package imagebuild

import (
	"errors"
	"slices"

	"dsas"
)

// checks collects what a build finds, so that all of it is told at once.
type checks struct {
	opt     *Options
	role    dsas.Role
	sources []source
	files   roleFiles

	found  []Finding
	report Report
}

// definition looks at the role's own files, before anything is installed, and
// says at once what it finds: who reads along need not wait for the end.
func (c *checks) definition(k *kernel) error {
	found, err := checkSources(c.sources)
	if err != nil {
		return err
	}
	mods, err := c.modules(k)
	if err != nil {
		return err
	}
	c.found = append(found, mods...)
	for _, f := range c.found {
		c.opt.say("check: %s", f)
	}
	return nil
}

// modules looks for the kernel modules that role.yaml names.
func (c *checks) modules(k *kernel) ([]Finding, error) {
	if len(c.role.Modules) == 0 {
		return nil, nil
	}
	set, err := k.moduleSet()
	if err != nil {
		return nil, err
	}
	var text []byte
	if i := slices.IndexFunc(c.sources, func(s source) bool { return s.Path == "role.yaml" }); i >= 0 {
		text = c.sources[i].Data
	}
	var out []Finding
	for _, m := range c.role.Modules {
		if _, err := set.Index.Closure(m); err != nil {
			out = append(out, Finding{
				Path: "role.yaml", Line: lineOf(text, m), Rule: "module-missing", Reason: "kernel " + k.Release + " has no module " + m + " that can be loaded: " + err.Error(),
				Way: "correct its name under modules, or take it out",
			})
		}
	}
	return out, nil
}

// tree looks at what base and packages and the role's files make together, and
// ends the checks: everything that was found and is not allowed is the error.
// built is the error of the layer of packages, whose own findings count.
func (c *checks) tree(built error, base, packages *layer) error {
	var own *CheckError
	switch {
	case errors.As(built, &own):
		c.found = append(c.found, own.Findings...)
	case built != nil:
		return built
	}
	c.found = append(c.found, base.Found...)
	all := merge(base, packages, filesIndex(c.files))
	if packages != nil {
		c.found = append(c.found, packages.Found...)
	}
	if own == nil { // else there is no tree to look at
		c.found = append(c.found, checkServices(c.role, c.files, all)...)
	}
	refused, passed := c.opt.allow.split(c.found)
	if len(refused) > 0 {
		return &CheckError{refused}
	}
	c.report = Report{Role: c.role.Name, Allowed: passed, UnusedAllow: c.opt.allow.unused(), Privileged: all.listPrivileged()}
	for _, f := range passed {
		c.opt.say("check: %s", f)
	}
	return nil
}

func (o *Options) report(r Report) {
	if o.Report != nil {
		o.Report(r)
	}
}
