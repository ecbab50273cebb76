/** Line icons on a 16 grid and state glyphs on a 24 grid; each state has a shape of its own. */

import type { JSX } from "preact";

const ICONS: Record<string, JSX.Element> = {
  pause: <path d="M5.500 3.500v9M10.500 3.500v9" class="thick" />,
  resume: <path d="M5 3.200v9.600L12.500 8z" class="full" />,
  save_ckpt: <path d="M8 2.500v7M5 7l3 3 3-3M2.500 11v2.500h11V11" />,
  validate_now: <path d="m2.500 8.500 3.500 3.500 7.500-8" />,
  test_now: <path d="M6 2.500h4M7 2.500v4l-3.700 6.200c-.3.500 0 .8.500.8h8.400c.5 0 .8-.3.500-.8L9 6.500v-4M5.200 10.500h5.600" />,
  rollback: <><path d="M3 3.500v3.500h3.500" /><path d="M3.300 7A5.200 5.200 0 1 1 3.200 9.500" /></>,
  undo: <><path d="M5.500 3 2.500 6l3 3" /><path d="M2.500 6h7a3.500 3.500 0 0 1 0 7H6" /></>,
  extend: <path d="M2.500 8h7.500M7.200 5.200 10 8l-2.800 2.800M13.500 3.500v9" />,
  stop: <rect x="3.500" y="3.500" width="9" height="9" rx="1" />,
  steer: <><path d="M2 4.500h7M13 4.500h1M2 11.500h1M7 11.500h7" /><circle cx="11" cy="4.500" r="1.800" /><circle cx="5" cy="11.500" r="1.800" /></>,
  checkpoints: <path d="M8 2 2 5l6 3 6-3zM2 8l6 3 6-3M2 11l6 3 6-3" />,
  samples: <path d="M2.500 13.500h11M4 11V8M6.700 11V3.500M9.300 11V6M12 11V9" />,
  lineage: <><circle cx="8" cy="3.500" r="1.700" /><circle cx="4" cy="12.500" r="1.700" /><circle cx="12" cy="12.500" r="1.700" /><path d="M8 5.200c0 3.300-4 2.300-4 5.600M8 5.200c0 3.300 4 2.300 4 5.600" /></>,
  health: <path d="M1.500 8.500h3l2-5 3 9 2-4h3" />,
  fork: <><circle cx="4.500" cy="3.500" r="1.600" /><circle cx="4.500" cy="12.500" r="1.600" /><circle cx="11.500" cy="5.500" r="1.600" /><path d="M4.500 5.100v5.800M11.500 7.100c0 2.700-7 1.200-7 3.800" /></>,
  merge: <><circle cx="4.500" cy="3.500" r="1.600" /><circle cx="4.500" cy="12.500" r="1.600" /><circle cx="11.500" cy="10.500" r="1.600" /><path d="M4.500 5.100v5.800M4.500 5.100c0 3.600 3 5.400 5.400 5.400" /></>,
  note: <path d="M4 14V2.500h8.500L10 5.700l2.500 3.300H4" />,
  link: <path d="m6.500 9.500 3-3M7 4.500l1.300-1.300a2.900 2.900 0 0 1 4.100 4.100L11 8.700M9 11.500l-1.300 1.300a2.900 2.900 0 0 1-4.100-4.100L5 7.300" />,
  search: <><circle cx="7" cy="7" r="4.500" /><path d="m10.500 10.500 3 3" /></>,
  bell: <path d="M4 11.500V7a4 4 0 0 1 8 0v4.500M2.500 11.500h11M6.700 13.700h2.600" />,
  log: <path d="M2.500 3.500h11M2.500 6.500h8M2.500 9.500h11M2.500 12.500h6" />,
  theme: <><circle cx="8" cy="8" r="5.500" /><path d="M8 2.500a5.500 5.500 0 0 1 0 11z" class="full bare" /></>,
  help: <><circle cx="8" cy="8" r="6" /><path d="M6.200 6.300a1.900 1.900 0 1 1 2.700 1.700c-.6.300-.9.700-.9 1.300M8 11.500v.010" /></>,
  close: <path d="m4 4 8 8M12 4l-8 8" />,
  down: <path d="m4 6 4 4 4-4" />,
  right: <path d="m6 4 4 4-4 4" />,
  copy: <><rect x="5.500" y="5.500" width="8" height="8" rx="1" /><path d="M10.500 5.500v-3h-8v8h3" /></>,
  warn: <><path d="M8 2 14.500 13.500h-13z" /><path d="M8 6.500v3.500M8 11.800v.010" /></>,
  plus: <path d="M8 3v10M3 8h10" />,
  ok: <><circle cx="8" cy="8" r="6" /><path d="m5.300 8.200 2 2 3.600-4.200" /></>,
  no: <><circle cx="8" cy="8" r="6" /><path d="m5.800 5.800 4.400 4.400M10.200 5.800l-4.400 4.400" /></>,
  unknown: <><circle cx="8" cy="8" r="6" class="dashed" /><path d="M5.500 8h5" /></>,
  more: <path d="M3.500 8v.010M8 8v.010M12.500 8v.010" class="thick" />,
  exact: <><path d="M8 1.800 13 3.500v4c0 3.200-2 5.500-5 6.800-3-1.300-5-3.600-5-6.800v-4z" /><path d="m5.600 7.800 1.800 1.800 3.200-3.600" /></>,
  inexact: <><path d="M8 1.800 13 3.500v4c0 3.200-2 5.500-5 6.800-3-1.300-5-3.600-5-6.800v-4z" /><path d="M5.500 7c.9-1 1.700-1 2.500-.3s1.600.7 2.500-.3M5.500 9.600c.9-1 1.700-1 2.500-.3s1.600.7 2.500-.3" /></>,
  download: <path d="M8 2.500v7M5 7l3 3 3-3M3 13.500h10" />,
};

export function Icon({ name }: { name: string }): JSX.Element {
  return (
    <svg class="i" viewBox="0 0 16 16" aria-hidden="true" focusable="false">
      {ICONS[name]}
    </svg>
  );
}

const ring = <circle cx="12" cy="12" r="9" class="ring" />;

const GLYPHS: Record<string, JSX.Element> = {
  run: <>{ring}<circle cx="12" cy="12" r="5" class="full" /></>,
  wait: <circle cx="12" cy="12" r="9" class="ring dots" />,
  pausing: <><circle cx="12" cy="12" r="9" class="ring dashes" /><path d="M9.500 8.500v7M14.500 8.500v7" class="heavy" /></>,
  paused: <>{ring}<path d="M9.500 8.500v7M14.500 8.500v7" class="heavy" /></>,
  val: <>{ring}<path d="m8 12.200 2.800 2.800 5.200-6" class="heavy" /></>,
  test: <>{ring}<path d="M10 7h4M11 7v3.500L8 16h8l-3-5.500V7" class="light" /></>,
  done: <><circle cx="12" cy="12" r="9.500" class="full" /><path d="m7.800 12.200 2.900 2.900 5.500-6.200" class="heavy inverse" /></>,
  fail: <><path d="M8 2.500h8l5.500 5.500v8L16 21.500H8L2.500 16V8z" class="ring" /><path d="m9 9 6 6M15 9l-6 6" class="heavy" /></>,
  stop: <>{ring}<rect x="8.500" y="8.500" width="7" height="7" class="full" /></>,
  lost: <><circle cx="12" cy="12" r="9" class="ring long" /><path d="M6 18 18 6" class="light" /></>,
  stall: <>{ring}<path d="M12 6.500V12h4" class="heavy" /></>,
  journal: <><path d="M5 3.500h10l4 4v13H5z" class="ring" /><path d="M8.500 11h7M8.500 15h7" class="light" /></>,
};

export function Glyph({ name }: { name: string }): JSX.Element {
  return (
    <svg class="glyph" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      {GLYPHS[name]}
    </svg>
  );
}

/** The letter of a run, in its colour. The sixth run has the first one's colour again. */
export function Tag({ letter }: { letter: string }): JSX.Element {
  return (
    <span class="tag" data-colour={colourOf(letter)} aria-hidden="true">
      {letter}
    </span>
  );
}

export function colourOf(letter: string): string {
  return "ABCDE".charAt((letter.charCodeAt(letter.length - 1) - 65) % 5);
}
