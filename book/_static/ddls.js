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
  const N_CHAINS = 400;
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

  const normal = () =>
    Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

  class Demo {
    constructor(root) {
      this.root = root;
      root.classList.add("demo");
      const row = document.createElement("div");
      row.className = "demo-pair";
      root.append(row);
      this.views = Object.entries(VIEWS).map(([name, view]) => this.panel(row, name, view));
      const controls = document.createElement("div");
      controls.className = "demo-controls";
      root.append(controls);
      this.step = this.slider(controls, "step size ε", -3, 0.5, -1.3);
      this.accepts = this.checkbox(controls, "accept or refuse (MALA)");
      this.button(controls, "restart", () => this.restart());
      this.pause = this.button(controls, "pause", () => this.toggle());
      this.status = document.createElement("p");
      this.status.className = "demo-status";
      root.append(this.status);
      this.restart();
      this.running = false;
      this.draw();
      if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
        this.pause.textContent = "run";
      } else {
        this.toggle();
      }
    }

    panel(row, name, view) {
      const figure = document.createElement("figure");
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = SIZE;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Chains over a map of their density: ${view.title}`);
      const caption = document.createElement("figcaption");
      caption.textContent = view.title;
      figure.append(canvas, caption);
      row.append(figure);
      return { name, view, canvas, background: this.map(name, view) };
    }

    slider(parent, name, low, high, start) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      const output = document.createElement("output");
      Object.assign(input, { type: "range", min: low, max: high, step: 0.05, value: start });
      input.setAttribute("aria-label", name);
      // Logarithmic: the value is 10 to the slider's position.
      const show = () => (output.textContent = (10 ** Number(input.value)).toPrecision(2));
      input.addEventListener("input", show);
      label.append(`${name} `, input, output);
      parent.append(label);
      show();
      return () => 10 ** Number(input.value);
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

    button(parent, name, action) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", action);
      parent.append(button);
      return button;
    }

    restart() {
      this.chains = Array.from({ length: N_CHAINS }, () => {
        const z = [normal(), normal()];
        return { z, ...energy(...z) };
      });
      this.steps = this.tried = this.moved = 0;
      if (this.status) this.report();
    }

    toggle() {
      this.running = !this.running;
      this.pause.textContent = this.running ? "pause" : "run";
      if (this.running) this.frame();
    }

    frame() {
      if (!this.running) return;
      for (let i = 0; i < 2; i += 1) this.move();
      this.draw();
      if (this.steps % 20 === 0) this.report();
      window.requestAnimationFrame(() => this.frame());
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

    map(name, view) {
      const n = 120;
      const context = document.createElement("canvas").getContext("2d");
      context.canvas.width = context.canvas.height = n;
      const image = context.createImageData(n, n);
      const level = (u, v) => (name === "latent" ? energy(u, v).value : -data(u, v).value);
      for (let row = 0; row < n; row += 1) {
        for (let column = 0; column < n; column += 1) {
          const u = view.left + ((column + 0.5) / n) * (view.right - view.left);
          const v = view.top - ((row + 0.5) / n) * (view.top - view.bottom);
          const shade = Math.min(1, (level(u, v) + 0.5) / 9);
          image.data.set([90 + 150 * shade, 130 + 112 * shade, 165 + 80 * shade, 255], 4 * (row * n + column));
        }
      }
      context.putImageData(image, 0, 0);
      return context.canvas;
    }

    draw() {
      for (const { name, view, canvas, background } of this.views) {
        const context = canvas.getContext("2d");
        context.imageSmoothingEnabled = true;
        context.drawImage(background, 0, 0, SIZE, SIZE);
        context.fillStyle = "rgba(120, 40, 0, 0.6)";
        for (const { z } of this.chains) {
          const [u, v] = name === "latent" ? z : generate(...z);
          const px = ((u - view.left) / (view.right - view.left)) * SIZE;
          const py = ((view.top - v) / (view.top - view.bottom)) * SIZE;
          context.fillRect(px - 1.5, py - 1.5, 3, 3);
        }
      }
    }

    report() {
      const counts = MEANS.map(() => 0);
      let squares = 0;
      for (const { z } of this.chains) {
        const [x1, x2] = generate(...z);
        const distances = MEANS.map(([a, b]) => (x1 - a) ** 2 + (x2 - b) ** 2);
        const mode = distances.indexOf(Math.min(...distances));
        counts[mode] += 1;
        squares += distances[mode];
      }
      const spread = Math.sqrt(squares / (2 * N_CHAINS));
      if (spread > 5) {
        this.status.textContent = `step ${this.steps}: the chains have diverged; lower the step size and restart`;
        return;
      }
      const percent = counts.map((n) => Math.round((100 * n) / N_CHAINS)).join(", ");
      const rate =
        this.accepts() && this.tried
          ? `; ${Math.round((100 * this.moved) / this.tried)} % of the steps accepted`
          : "";
      this.status.textContent =
        `step ${this.steps}: ${percent} % of the samples in the three modes (data: 33 % each); ` +
        `spread around their centres ${spread.toFixed(2)} (data: ${STD})${rate}`;
    }
  }

  const start = () => document.querySelectorAll('[data-demo="ddls"]').forEach((e) => new Demo(e));
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
