// Langevin chains in the latent space of a generator and their images in the data space, with the
// step size in the reader's hands. The GAN is `exact_gan` of the package: the logit is exact.
// A page asks for it with <div data-demo="ddls"></div>; elsewhere this file does nothing.

(() => {
  "use strict";
  const MEANS = [
    [-0.8, -0.9],
    [1.3, -0.3],
    [0.2, 1.1],
  ];
  const STD = 0.4;
  const C = 0.3; // of the generator
  const { N_CHAINS, normal } = CourseDemo;
  const VIEWS = {
    latent: { left: -3.6, right: 3.6, bottom: -3.6, top: 3.6, title: "latents z" },
    data: { left: -2.6, right: 3.0, bottom: -2.8, top: 2.8, title: "samples x = G(z)" },
  };
  const SIZE = 360;

  const generate = (z1, z2) => {
    const x1 = z1 + C * Math.sqrt(1 + z1 * z1);
    return [x1, z2 + Math.sin(2 * x1)];
  };

  // log p of the data up to a constant, and its gradient.
  const data = (x1, x2) => {
    const logs = MEANS.map(([a, b]) => -((x1 - a) ** 2 + (x2 - b) ** 2) / (2 * STD ** 2));
    const top = Math.max(...logs);
    const weights = logs.map((value) => Math.exp(value - top));
    const total = weights.reduce((sum, value) => sum + value, 0);
    const gradient = [0, 0];
    MEANS.forEach(([a, b], i) => {
      gradient[0] += ((weights[i] / total) * (a - x1)) / STD ** 2;
      gradient[1] += ((weights[i] / total) * (b - x2)) / STD ** 2;
    });
    return { value: top + Math.log(total), gradient };
  };

  // E(z) = |z|^2/2 - d(G(z)) = -log p(G(z)) - log(dx_1/dz_1) up to a constant, and its gradient.
  const energy = (z1, z2) => {
    const root = Math.sqrt(1 + z1 * z1);
    const slope = 1 + (C * z1) / root;
    const [x1, x2] = generate(z1, z2);
    const p = data(x1, x2);
    return {
      value: -p.value - Math.log(slope),
      gradient: [
        -(p.gradient[0] + p.gradient[1] * 2 * Math.cos(2 * x1)) * slope - C / root ** 3 / slope,
        -p.gradient[1],
      ],
    };
  };

  class Demo extends CourseDemo {
    addPictures(root) {
      const row = document.createElement("div");
      row.className = "demo-pair";
      root.append(row);
      this.views = Object.entries(VIEWS).map(([name, view]) => this.panel(row, name, view));
    }

    addControls(parent) {
      this.step = this.slider(parent, "step size ε", -3, 0.5, -1.3);
      this.accepts = this.checkbox(parent, "accept or refuse (MALA)");
    }

    panel(row, name, view) {
      const figure = document.createElement("figure");
      const label = `Chains over a map of their density: ${view.title}`;
      const canvas = this.canvas(SIZE, SIZE, label);
      const caption = document.createElement("figcaption");
      caption.textContent = view.title;
      figure.append(canvas, caption);
      row.append(figure);
      const level = (u, v) => (name === "latent" ? energy(u, v).value : -data(u, v).value);
      const background = this.map(view, 120, 120, (u, v) => (level(u, v) + 0.5) / 9);
      return { name, view, canvas, background };
    }

    checkbox(parent, name) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      input.type = "checkbox";
      input.setAttribute("aria-label", name);
      input.addEventListener("change", () => this.restart());
      label.append(input, ` ${name}`);
      parent.append(label);
      return () => input.checked;
    }

    restart() {
      this.chains = Array.from({ length: N_CHAINS }, () => {
        const z = [normal(), normal()];
        return { z, ...energy(...z) };
      });
      this.steps = this.tried = this.moved = 0;
      this.report();
    }

    move() {
      const size = this.step();
      const exact = this.accepts();
      this.chains = this.chains.map((chain) => {
        const noise = [normal(), normal()];
        // A chain that has left for good would overflow.
        const z = chain.z.map((v, i) =>
          Math.max(-1e3, Math.min(1e3, v - (size / 2) * chain.gradient[i] + Math.sqrt(size) * noise[i]))
        );
        const next = { z, ...energy(...z) };
        this.tried += 1;
        if (exact) {
          const back = chain.z.map((v, i) => v - z[i] + (size / 2) * next.gradient[i]);
          const forth = (noise[0] ** 2 + noise[1] ** 2) / 2;
          const return_ = (back[0] ** 2 + back[1] ** 2) / (2 * size);
          const logAlpha = chain.value - next.value + forth - return_;
          if (!(Math.log(1 - Math.random()) < logAlpha)) return chain;
        }
        this.moved += 1;
        return next;
      });
      this.steps += 1;
    }

    points(name) {
      return this.chains.map(({ z }) => (name === "latent" ? z : generate(...z)));
    }

    draw() {
      for (const { name, view, canvas, background } of this.views) {
        this.paint(canvas, background, view, this.points(name));
      }
    }

    report() {
      const who = "samples in the three modes";
      const text = this.describe(this.points("data"), MEANS, who, "data: 33 % each", "data", STD);
      const rate =
        this.accepts() && this.tried
          ? `; ${Math.round((100 * this.moved) / this.tried)} % of the steps accepted`
          : "";
      const lost = this.chains.filter(({ z }) => Math.hypot(...z) > 10).length;
      this.status.textContent = lost > N_CHAINS / 2 ? this.diverged() : text + rate;
    }
  }

  Demo.start("ddls");
})();
